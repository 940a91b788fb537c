"""Runs one stage in one process: the batch loop and a web server."""

import asyncio
import gc
import hashlib
import logging
import os
import sys
import time
from functools import partial
from typing import NoReturn

from filelock import FileLock, Timeout

from stream import logs, signals, tracing
from stream.config import Settings, StageName
from stream.errors import ConfigurationError, Outage, StreamError
from stream.health import preflight, watch, web
from stream.kafka import clients, deadletters, topics
from stream.stages.registry import open_stage
from stream.worker import scratch
from stream.worker.loop import BatchLoop
from stream.worker.outputs import Outputs
from stream.worker.ports import web_port
from stream.worker.source import Source

log = logging.getLogger(__name__)

COLLECT = 100_000, 20, 100  # new objects until a collection, and collections of a generation until one of the next
_claims: list[object] = []  # held until the process ends
PAUSE_BEFORE_RESTART = 5.0  # seconds: a supervisor may restart a worker without a pause


def run(stage: StageName, settings: Settings) -> None:
    """Runs until SIGTERM or SIGINT, then finishes the batches in flight; raises `StreamError` if it cannot start.

    A signal before the worker can take the first batch ends the process at once, with exit code 0.
    """
    signals.end_at_once(0)
    logs.configure(settings)
    try:
        with tracing.exported(settings, stage):
            asyncio.run(_work(stage, settings))
    except Outage:
        time.sleep(PAUSE_BEFORE_RESTART)
        raise


async def _work(name: StageName, settings: Settings) -> None:
    _claim_name(name, settings)
    await preflight.check(name, settings)
    for warning in await topics.check(settings, topics.of(settings, name)):
        log.warning("%s", warning)
    async with (
        open_stage(name, settings) as stage,
        clients.producer(settings, linger_ms=0) as producer,
        clients.letter_producer(settings) as letters,
    ):
        source = Source(name, settings)
        outputs = Outputs(name, producer, letters, settings)
        earlier = partial(deadletters.rejected, settings, name, settings.reject_count)
        loop = BatchLoop(stage, source, outputs, settings, fail, earlier=earlier)
        port = web_port(name, settings)
        gc.freeze()  # the collector need not look at what lives as long as the process,
        gc.set_threshold(*COLLECT)  # nor a hundred times a second at what a batch makes: a seventh of the time
        async with (
            watch.watched(settings, stage, fail, loop.read_again) as wrong,
            web.serve(settings.web_host, port, loop.unhealthy, lambda: loop.unhealthy() or loop.unready() or wrong()),
        ):
            log.info("%s: %s -> %s", name, topics.source(settings, name), topics.target(settings, name))
            stopping = _signalled()
            starting = asyncio.create_task(source.start())
            await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                await starting
                ended = asyncio.create_task(source.ended())
                await asyncio.wait([ended, stopping], return_when=asyncio.FIRST_COMPLETED)
                if not stopping.done():
                    fail(Outage(f"Faust has stopped: {source.crash_reason!r}"))
            log.info("draining")
            if not (starting.done() and loop.assigned):  # Faust would join the group first, which may take minutes
                await loop.drain()
                _end(0)
            await source.stop()
            log.info("stopped")


def _signalled() -> "asyncio.Task[bool]":
    """A task that is done when the process has received SIGTERM or SIGINT."""
    received = asyncio.Event()
    for number in signals.SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, received.set)
    return asyncio.create_task(received.wait())


def _claim_name(stage: StageName, settings: Settings) -> None:
    """Locks the instance name on this host: two static members with one name would fence each other again and again."""
    name = f"{settings.kafka_servers} {topics.group(settings, stage)} {settings.instance}"
    lock = scratch.folder() / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.lock"
    try:
        _claims.append(FileLock(lock, timeout=0).acquire())
    except Timeout:
        raise ConfigurationError(
            f"another {stage} worker with the name {settings.instance} runs on this host; "
            "set a different STREAM_INSTANCE and STREAM_WEB_PORT for each"
        ) from None


def fail(error: BaseException) -> NoReturn:
    """Ends the process at once, without acknowledging an unfinished batch; a supervisor starts it again."""
    log.error("%s", error, exc_info=None if isinstance(error, StreamError) else error)
    code = error.exit_code if isinstance(error, StreamError) else Outage.exit_code
    print(f"stream: {error or repr(error)}", file=sys.stderr, flush=True)  # noqa: T201
    _end(code)


def _end(code: int) -> NoReturn:
    logging.shutdown()
    os._exit(code)
