"""The topic of a stage: gives batches to the batch loop, and takes its acknowledgements. Runs on Faust.

Only this module and `consumer` use Faust. The names used here, by upstream file;
`tests/worker/test_upstream.py` fails if one of these changes:

- faust/streams.py: `Stream.noack_take`, `.ack`
- faust/app/base.py: `App.consumer_generation_id` (the generation of the consumer group), `.crash_reason`, and the
  signals `on_partitions_revoked`, `on_partitions_assigned` and `on_before_shutdown`
- faust/sensors/monitor.py: `Monitor.tp_read_offsets`
- faust/transport/consumer.py: `Consumer.commit`, `.assignment`
- faust/types/tuples.py: `Message.generation_id`
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import faust

from stream import metrics
from stream.config import Settings, StageName
from stream.kafka import security, topics
from stream.records import Record
from stream.worker import scratch
from stream.worker.consumer import Heartbeats, Transport

# Seconds without a fetch after which a consumer leaves its group. Faust does not fetch while a batch waits, which may
# take long in an outage or under a rate limit. The batch loop itself ends a worker that hangs.
NEVER = 365 * 86_400.0
METADATA_AGE_MS = 10_000  # until new partitions are read


class Delivery(NamedTuple):
    """A delivered record that is not acknowledged yet, with Faust's event and stream."""

    record: Record
    event: Any
    stream: Any


Batches = AsyncIterator[Sequence[Delivery]]


class Source:
    """Reads the source topic of a stage as a member of its consumer group."""

    def __init__(self, stage: StageName, settings: Settings) -> None:
        self._app = _app(stage, settings)
        self._stage = stage
        self._settings = settings
        self._taken: dict[Any, int] = {}  # the last offset that the loop has taken, by partition

    def connect(
        self,
        take: Callable[[Batches], Awaitable[None]],
        assigned: Callable[[int], None],
        revoked: Callable[[], Awaitable[None]],
        stopping: Callable[[], Awaitable[None]],
    ) -> None:
        """Sets the callbacks: `take` gets the batches, `assigned` the number of partitions at each assignment.

        Faust gives partitions back when `revoked` returns, and stops when `stopping` returns; it commits what is
        acknowledged by then. `take` must not keep a batch's outcome: Faust acknowledges what an agent's body drops.
        """

        async def taking(stream: Any) -> None:
            await take(self._batches(stream))

        async def on_revoked(app: faust.App, partitions: set[Any], **_: Any) -> None:
            await revoked()
            await app.consumer.commit()

        async def on_assigned(app: faust.App, partitions: set[Any], **_: Any) -> None:
            # Records read before this assignment come again, here or at another worker.
            self._taken = dict(app.monitor.tp_read_offsets)
            assigned(len(partitions))

        async def on_stopping(app: faust.App, **_: Any) -> None:
            await stopping()

        topic = self._app.topic(
            topics.source(self._settings, self._stage), key_serializer="raw", value_serializer="raw"
        )
        self._app.agent(topic, name=self._stage)(taking)
        self._app.on_partitions_revoked.connect(on_revoked, weak=False)
        self._app.on_partitions_assigned.connect(on_assigned, weak=False)
        self._app.on_before_shutdown.connect(on_stopping, weak=False)

    async def _batches(self, stream: Any) -> Batches:
        """Yields up to `batch_size` records, or those that arrived within `batch_within` seconds."""
        async for events in stream.noack_take(self._settings.batch_size, within=self._settings.batch_within):
            yield [Delivery(as_record(event.message), event, stream) for event in events]

    def current(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """The deliveries of the current assignment; Kafka delivers the others again, here or to another worker."""
        generation = self._app.consumer_generation_id
        return [delivery for delivery in deliveries if delivery.event.message.generation_id == generation]

    def note_taken(self, deliveries: Sequence[Delivery]) -> None:
        """Notes that the loop has started to process these."""
        self._taken |= {delivery.event.message.tp: delivery.record.offset for delivery in deliveries}

    def read_more_than_taken(self) -> bool:
        """Whether Faust has read records that the loop has not started to process."""
        read = self._app.monitor.tp_read_offsets
        return any(read.get(tp, -1) > self._taken.get(tp, -1) for tp in self._app.consumer.assignment())

    async def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """Marks these as done; Faust commits them in the background."""
        for delivery in deliveries:
            await delivery.stream.ack(delivery.event)

    async def commit_the_beginning(self) -> bool:
        """Commits offset 0 of all assigned partitions, and nothing after it; returns whether Kafka has taken it."""
        return bool(await self._app.consumer.commit_the_beginning())

    @property
    def heartbeat_answered(self) -> float:
        """`time.monotonic()` at which the newest heartbeat that Kafka has answered was sent; 0 before the first."""
        return Heartbeats.answered

    async def start(self) -> None:
        """Joins the group; returns when Faust is running."""
        await self._app.start()

    async def ended(self) -> None:
        """Waits until Faust has ended by itself."""
        await self._app.wait_until_stopped()

    @property
    def crash_reason(self) -> BaseException | None:
        """Why Faust has ended."""
        return self._app.crash_reason  # type: ignore[no-any-return]

    async def stop(self) -> None:
        """Calls `stopping`, commits and leaves the group."""
        await self._app.stop()


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
        datadir=scratch.folder() / "faust",
        autodiscover=False,
        web_enabled=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        consumer_group_instance_id=f"{stage}-{settings.instance}",
        broker_session_timeout=settings.session_timeout,
        broker_heartbeat_interval=settings.session_timeout / 10,
        broker_rebalance_timeout=rebalance,
        broker_request_timeout=max(90, settings.session_timeout, rebalance) + 10,  # joining can take a whole rebalance
        broker_max_poll_interval=NEVER,
        consumer_metadata_max_age_ms=METADATA_AGE_MS,
        broker_commit_interval=settings.commit_interval,
        stream_buffer_maxsize=2 * settings.batch_size,
        stream_wait_empty=False,
    )
    app.transport = Transport(app, expired=metrics.records_expired.labels(stage).inc)
    return app


def _credentials(settings: Settings) -> faust.SASLCredentials | faust.SSLCredentials | None:
    """The security arguments of aiokafka's clients, as Faust's types."""
    arguments = security.arguments(settings)
    context = arguments.get("ssl_context")
    if "sasl_mechanism" in arguments:
        return faust.SASLCredentials(
            username=arguments["sasl_plain_username"],
            password=arguments["sasl_plain_password"],
            mechanism=arguments["sasl_mechanism"],
            ssl_context=context,
        )
    return faust.SSLCredentials(context) if context else None


def as_record(message: Any) -> Record:
    """A message of Faust, whose timestamps are seconds, as a `Record`."""
    return Record(
        message.topic,
        message.partition,
        message.offset,
        message.key,
        message.value,
        round(message.timestamp * 1000),
        tuple(message.headers or ()),
    )
