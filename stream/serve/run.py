"""Runs the service in one process until SIGTERM or SIGINT, and finishes the requests in flight."""

import asyncio
import logging
import math
import socket
from types import FrameType
from typing import Any

import uvicorn

from stream import logs, signals, tracing
from stream.config import Settings
from stream.errors import ConfigurationError
from stream.serve.access import Keys
from stream.serve.app import application, served
from stream.serve.service import Service, open_service, require_private

log = logging.getLogger(__name__)

BACKLOG = 2048  # connections that wait, as uvicorn's default


def run(settings: Settings) -> None:
    """Serves until a signal; raises `StreamError` if it cannot listen or the models cannot be loaded."""
    signals.end_at_once(0)
    logs.configure(settings)
    keys = Keys(settings.serve_keys)
    require_private(settings.serve_host, keys.required)
    with tracing.exported(settings, "serve"), _listening(settings) as listener:
        asyncio.run(_serve(settings, keys, listener))


def openapi(settings: Settings) -> dict[str, Any]:
    """The description of the interface (OpenAPI 3.1)."""

    async def described() -> dict[str, Any]:
        async with open_service(settings) as service:
            return application(service).openapi()

    return asyncio.run(described())


def _listening(settings: Settings) -> socket.socket:
    host, port = settings.serve_host, settings.serve_port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigurationError(
            f"cannot serve on {host}:{port}: {error.strerror}; set STREAM_SERVE_HOST or STREAM_SERVE_PORT"
        ) from None
    # Otherwise the kernel holds a body back until the client acknowledges the headers, 40 ms on Linux. asyncio sets
    # this for sockets that it makes itself.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


async def _serve(settings: Settings, keys: Keys, listener: socket.socket) -> None:
    async with open_service(settings) as service:
        config = uvicorn.Config(
            served(service, keys),
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=math.ceil(settings.drain_timeout),
        )
        server = _Server(config, service)
        address, port = listener.getsockname()[:2]
        log.info("http://%s:%d", f"[{address}]" if ":" in address else address, port)
        serving = asyncio.create_task(server.serve([listener]))
        warming = asyncio.create_task(service.warm())
        await asyncio.wait([serving, warming], return_when=asyncio.FIRST_COMPLETED)
        if warming.done() and warming.exception():
            server.should_exit = True
        await serving
        if warming.done():
            await warming
        warming.cancel()
        log.info("stopped")


class _Server(uvicorn.Server):
    """Drains at the first signal. uvicorn's own handler would send the signal again at the end."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by uvicorn for SIGTERM and SIGINT; the second one does not wait for the requests in flight."""
        log.info("draining")
        self.force_exit = self.should_exit
        self.should_exit = True
        self._service.drain()
