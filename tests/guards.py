"""Certificates, and proxies that add TLS and authentication to servers without them."""

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from aiohttp import web
from faults.proxy import Forward, Proxy


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate of 127.0.0.1, and its key."""
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    openssl(
        *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", f"/CN={name}"),
        *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)),
    )
    return cert, key


def serving(cert: Path, key: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    return context


@asynccontextmanager
async def tls_before(address: str, context: ssl.SSLContext) -> AsyncIterator[str]:
    """A proxy that terminates TLS in front of host:port; yields its own host:port. Cuts all connections at the end."""
    host, _, port = address.partition(":")
    writers: list[asyncio.StreamWriter] = []

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with suppress(OSError):
            while data := await reader.read(2**16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, to_behind = await asyncio.open_connection(host, int(port))
        await asyncio.gather(copy(reader, to_behind), copy(behind, writer))

    server = await asyncio.start_server(pass_on, "127.0.0.1", 0, ssl=context)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()


@asynccontextmanager
async def login_before(url: str, authorization: str, context: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """A proxy that forwards requests with this header and rejects others; yields its own host:port."""

    async def let_in(request: web.Request, body: bytes, forward: Forward) -> web.Response | None:
        return None if request.headers.get("authorization") == authorization else web.Response(status=401)

    async with Proxy(url, "", context) as proxy, proxy.spoiling(let_in):
        yield proxy.address
