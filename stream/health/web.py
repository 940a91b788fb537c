"""A worker's web server: /metrics for Prometheus, /healthz and /readyz for Kubernetes' probes.

`/healthz` fails when only a restart can help, `/readyz` when the worker cannot take work at the moment. Both answer
with a sentence.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from stream import metrics
from stream.errors import ConfigurationError

Check = Callable[[], str | None]


@asynccontextmanager
async def serve(host: str, port: int, unhealthy: Check, unready: Check) -> AsyncIterator[None]:
    """Serves while the context lasts; each check returns what is wrong, or None."""

    async def prometheus(request: web.Request) -> web.Response:
        body, content_type = metrics.exposed(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    def answer(check: Check) -> web.Response:
        wrong = check()
        return web.Response(status=503 if wrong else 200, text=f"{wrong or 'ok'}\n")

    async def healthz(_: web.Request) -> web.Response:
        return answer(unhealthy)

    async def readyz(_: web.Request) -> web.Response:
        return answer(unready)

    app = web.Application()
    app.add_routes([web.get("/metrics", prometheus), web.get("/healthz", healthz), web.get("/readyz", readyz)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise ConfigurationError(f"cannot serve on {host}:{port}: {error.strerror}; set STREAM_WEB_PORT") from None
        yield
    finally:
        await runner.cleanup()
