"""One process running one stage: a Faust app around the batch loop, with a web server beside it."""

import asyncio
import hashlib
import logging
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn

import faust
from filelock import FileLock, Timeout

from stream import kafka, kafka_security, logs, metrics, preflight, signals, source, topics, traces, watch, web
from stream.config import Settings, StageName
from stream.errors import ConfigurationError, Outage, StreamError
from stream.loop import BatchLoop
from stream.stages import open_stage

log = logging.getLogger(__name__)

_claims: list[object] = []  # held until the process ends
WEB_PORTS: dict[StageName, int] = {"embed": 9101, "expand": 9102, "index": 9103}
PAUSE_BEFORE_RESTART = 5.0  # seconds: a supervisor may start a worker again at once
# Seconds without a fetch until a consumer leaves its group. Faust fetches nothing while a batch waits, which may take
# long in an outage or under a rate limit; the loop itself ends a worker that hangs.
NEVER = 365 * 86_400.0
METADATA_AGE_MS = 10_000  # until partitions that were added are read


def run(stage: StageName, settings: Settings) -> None:
    """Runs until SIGTERM or SIGINT, then finishes what is in flight; raises `StreamError` if it cannot start.

    A signal that comes before the first batch can be taken ends the process at once, with exit code 0.
    """
    signals.end_at_once(0)
    logs.configure(settings)
    try:
        with traces.exported(settings, stage):
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
        kafka.producer(settings) as producer,
        kafka.letter_producer(settings) as letters,
    ):
        loop = BatchLoop(stage, producer, letters, settings, fail)
        app = _app(name, settings)
        loop.attach(app)
        port = WEB_PORTS[name] if settings.web_port is None else settings.web_port
        async with (
            watch.watched(settings, stage, fail, loop.read_again) as wrong,
            web.serve(settings.web_host, port, loop.unhealthy, lambda: loop.unhealthy() or loop.unready() or wrong()),
        ):
            log.info("%s: %s -> %s", name, topics.source(settings, name), topics.target(settings, name))
            stopping = _signalled()
            starting = asyncio.create_task(app.start())
            await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                await starting
                ended = asyncio.create_task(app.wait_until_stopped())
                await asyncio.wait([ended, stopping], return_when=asyncio.FIRST_COMPLETED)
                if not stopping.done():
                    fail(Outage(f"Faust has stopped: {app.crash_reason!r}"))
            log.info("draining")
            if not (starting.done() and loop.assigned):  # to stop, Faust would join first, which may take minutes
                await loop.drain()
                _end(0)
            await app.stop()
            log.info("stopped")


def _signalled() -> "asyncio.Task[bool]":
    """Is done when SIGTERM or SIGINT has come."""
    came = asyncio.Event()
    for number in signals.SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, came.set)
    return asyncio.create_task(came.wait())


def _claim_name(stage: StageName, settings: Settings) -> None:
    """Kafka lets two static members of one name throw each other out for ever, so one host does not start two."""
    name = f"{settings.kafka_servers} {topics.group(settings, stage)} {settings.instance}"
    lock = _scratch() / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.lock"
    try:
        _claims.append(FileLock(lock, timeout=0).acquire())
    except Timeout:
        raise ConfigurationError(
            f"another {stage} worker runs here under the name {settings.instance}; "
            "give each its own with STREAM_INSTANCE, and its own STREAM_WEB_PORT"
        ) from None


def _scratch() -> Path:
    """A folder of this user for what need not outlast a reboot."""
    folder = Path(tempfile.gettempdir()) / f"stream-worker-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _app(stage: StageName, settings: Settings) -> faust.App:
    """Faust without its tables, leader, web server and implicit topics."""
    rebalance = settings.drain_timeout + 30
    app = faust.App(
        topics.group(settings, stage),
        broker_credentials=_credentials(settings),
        broker=[f"kafka://{server}" for server in settings.kafka_servers.split(",")],
        key_serializer="raw",
        value_serializer="raw",
        store="memory://",
        datadir=_scratch() / "faust",
        autodiscover=False,
        web_enabled=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        consumer_group_instance_id=f"{stage}-{settings.instance}",
        broker_session_timeout=settings.session_timeout,
        broker_heartbeat_interval=settings.session_timeout / 10,
        broker_rebalance_timeout=rebalance,
        broker_request_timeout=max(90, settings.session_timeout, rebalance) + 10,  # joining takes a whole rebalance
        broker_max_poll_interval=NEVER,
        consumer_metadata_max_age_ms=METADATA_AGE_MS,
        broker_commit_interval=settings.commit_interval,
        stream_buffer_maxsize=2 * settings.batch_size,
        stream_wait_empty=False,
    )
    app.transport = source.Transport(app, expired=metrics.records_expired.labels(stage).inc)
    return app


def _credentials(settings: Settings) -> faust.SASLCredentials | faust.SSLCredentials | None:
    """The arguments of aiokafka's clients as Faust takes them."""
    told = kafka_security.arguments(settings)
    context = told.get("ssl_context")
    if "sasl_mechanism" in told:
        return faust.SASLCredentials(
            username=told["sasl_plain_username"],
            password=told["sasl_plain_password"],
            mechanism=told["sasl_mechanism"],
            ssl_context=context,
        )
    return faust.SSLCredentials(context) if context else None


def fail(error: BaseException) -> NoReturn:
    """Ends the process at once: nothing of an unfinished batch is acknowledged, and a supervisor starts it again."""
    log.error("%s", error, exc_info=None if isinstance(error, StreamError) else error)
    code = error.exit_code if isinstance(error, StreamError) else Outage.exit_code
    print(f"stream: {error or repr(error)}", file=sys.stderr, flush=True)  # noqa: T201
    _end(code)


def _end(code: int) -> NoReturn:
    logging.shutdown()
    os._exit(code)
