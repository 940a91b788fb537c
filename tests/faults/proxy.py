"""An HTTP proxy between a worker and a real server that can spoil responses."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

import aiohttp
import orjson
from aiohttp import web
from ports import free_ports
from support import until


@dataclass(frozen=True)
class Answer:
    status: int
    kind: str
    body: bytes


Forward = Callable[[bytes], Awaitable[Answer]]
Spoil = Callable[[web.Request, bytes, Forward], Awaitable[web.StreamResponse | None]]


class Proxy:
    """Forwards requests; while `spoiling` is set, it answers requests to `path` instead."""

    def __init__(self, upstream: str, path: str, context: ssl.SSLContext | None = None) -> None:
        self.spoiled = 0
        self._upstream = upstream
        self._path = path
        self._spoil: Spoil | None = None
        self._mistake: Exception | None = None
        self._context = context
        (self._port,) = free_ports(1)
        self.address = f"127.0.0.1:{self._port}"
        self.url = f"http://{self.address}"

    async def __aenter__(self) -> Self:
        self._client = aiohttp.ClientSession()
        app = web.Application(client_max_size=2**30)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
        await self._client.close()

    @asynccontextmanager
    async def spoiling(self, spoil: Spoil) -> AsyncIterator[None]:
        self._spoil = spoil
        try:
            yield
        finally:
            self._spoil = None
        if self._mistake:
            raise self._mistake

    @asynccontextmanager
    async def refusing(self) -> AsyncIterator[None]:
        """Closes the port and cuts the open connections."""
        await self._site.stop()
        for connection in list(self._runner.server.connections):
            connection.force_close()
            if connection.transport:
                connection.transport.abort()
        try:
            yield
        finally:
            await self._listen()

    async def until_spoiled(self, times: int) -> None:
        """Waits until this many more requests were spoiled."""
        goal = self.spoiled + times

        async def reached() -> bool:
            return self.spoiled >= goal

        await until(reached, every=0.05)

    async def _listen(self) -> None:
        self._site = web.TCPSite(self._runner, "127.0.0.1", self._port, ssl_context=self._context, reuse_address=True)
        await self._site.start()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()

        async def forward(body: bytes) -> Answer:
            headers = {n: v for n, v in request.headers.items() if n in ("Content-Type", "Authorization")}
            async with self._client.request(
                request.method, self._upstream + str(request.rel_url), data=body, headers=headers
            ) as response:
                return Answer(response.status, response.headers.get("Content-Type", ""), await response.read())

        if self._spoil and request.path.endswith(self._path):
            self.spoiled += 1
            try:
                if answer := await self._spoil(request, body, forward):
                    return answer
            except Exception as error:
                if not isinstance(error, OSError):  # an OSError is a closed connection, which a fault may cause
                    self._mistake = error
                raise
        try:
            passed = await forward(body)
        except aiohttp.ClientConnectionError:
            return cut(request)
        return web.Response(status=passed.status, headers={"Content-Type": passed.kind}, body=passed.body)


def cut(request: web.Request) -> web.Response:
    """Cuts the connection without an answer."""
    if request.transport:
        request.transport.abort()
    return web.Response(status=502)


# Ways to spoil an answer


def status(code: int, **headers: str) -> Spoil:
    async def spoil(request: web.Request, body: bytes, forward: Forward) -> web.Response:
        return web.Response(status=code, headers=headers, text="an injected fault")

    return spoil


async def silence(request: web.Request, body: bytes, forward: Forward) -> None:
    await asyncio.Event().wait()


async def cutting(request: web.Request, body: bytes, forward: Forward) -> web.Response:
    await forward(body)
    return cut(request)


async def half(request: web.Request, body: bytes, forward: Forward) -> web.StreamResponse:
    passed = await forward(body)
    headers = {"Content-Type": passed.kind, "Content-Length": str(len(passed.body))}
    response = web.StreamResponse(status=passed.status, headers=headers)
    await response.prepare(request)
    await response.write(passed.body[: len(passed.body) // 2])
    cut(request)
    return response


def delayed(seconds: float) -> Spoil:
    async def spoil(request: web.Request, body: bytes, forward: Forward) -> None:
        await asyncio.sleep(seconds)

    return spoil


def changed(change: Callable[[Any], Any]) -> Spoil:
    """The real answer with another JSON document in it."""

    async def spoil(request: web.Request, body: bytes, forward: Forward) -> web.Response:
        passed = await forward(body)
        content = orjson.dumps(change(orjson.loads(passed.body)))
        return web.Response(status=passed.status, headers={"Content-Type": "application/json"}, body=content)

    return spoil
