"""Certificates, proxies that add TLS and authentication to servers without them, and a token endpoint."""

import asyncio
import base64
import ssl
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote_plus

import orjson
from aiohttp import encode_basic_auth, web
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


def serving(cert: Path, key: Path, clients: Path | None = None) -> ssl.SSLContext:
    """The context of a server. With `clients`, it requires a client certificate that this bundle verifies."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=clients)
    context.load_cert_chain(cert, key)
    context.verify_mode = ssl.CERT_REQUIRED if clients else ssl.CERT_NONE
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


class TokenEndpoint:
    """A token endpoint (RFC 6749, section 4.4) that knows one client. Its tokens are unsecured JWTs (RFC 7519)."""

    def __init__(self, name: str, secret: str, lifetime: float = 3600) -> None:
        self.lifetime = lifetime  # seconds of the next tokens
        self.status = 200  # of the next answers; with 200, a stranger is refused
        self.body: Any = None  # of the next answers, in place of a token
        self.tokens: list[str] = []
        self.scopes: list[str | None] = []
        self.url = ""
        self._login = encode_basic_auth(quote_plus(name), quote_plus(secret))

    @asynccontextmanager
    async def serving(self, context: ssl.SSLContext | None = None) -> AsyncIterator[Self]:
        app = web.Application()
        app.router.add_post("/token", self._answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        self.url = f"{'https' if context else 'http'}://127.0.0.1:{runner.addresses[0][1]}/token"
        try:
            yield self
        finally:
            await runner.cleanup()

    def token(self, lifetime: float | None = None) -> str:
        now = time.time()
        claims = {"sub": "alice", "iat": now - 3600, "exp": now + (self.lifetime if lifetime is None else lifetime)}
        head, body = (base64.urlsafe_b64encode(orjson.dumps(part)).decode() for part in ({"alg": "none"}, claims))
        self.tokens.append(f"{head.rstrip('=')}.{body.rstrip('=')}.")
        return self.tokens[-1]

    async def _answer(self, request: web.Request) -> web.Response:
        form = await request.post()
        assert form["grant_type"] == "client_credentials"
        if request.headers.get("Authorization") != self._login:
            return web.json_response({"error": "invalid_client"}, status=401)
        self.scopes.append(form.get("scope"))
        if self.status != 200 or self.body is not None:
            return web.json_response(self.body, status=self.status)
        return web.json_response({"access_token": self.token(), "token_type": "bearer", "expires_in": self.lifetime})
