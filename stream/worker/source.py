"""The topic of a stage: gives batches to the batch loop, and takes its acknowledgements. Runs on Faust.

Faust runs the app, its agent, the consumer group and the commits. Records do not pass through Faust's streams, which
handle one at a time: `consumer` delivers each fetch as a whole.

Only this module and `consumer` use Faust. The names used here, by upstream file;
`tests/worker/test_upstream.py` fails if one of these changes:

- faust/app/base.py: `App.consumer_generation_id` (the generation of the consumer group), `.crash_reason`, and the
  signals `on_partitions_revoked`, `on_partitions_assigned` and `on_before_shutdown`
- faust/transport/consumer.py: `Consumer.commit`
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from typing import Any, NamedTuple

import faust
from faust.auth import OAuthCredentials

from stream import metrics
from stream.batches import split
from stream.config import Settings, StageName
from stream.kafka import security, topics
from stream.records import Record
from stream.worker import scratch
from stream.worker.consumer import Deliver, Heartbeats, Transport

# Seconds without a fetch after which a consumer leaves its group. Faust does not fetch while a batch waits, which may
# take long in an outage or under a rate limit. The batch loop itself ends a worker that hangs.
NEVER = 365 * 86_400.0
METADATA_AGE_MS = 10_000  # until new partitions are read
FETCH_BYTES = 4 * 2**20  # of each partition at once: a batch of records with vectors


class Delivery(NamedTuple):
    """A delivered record that is not acknowledged yet: aiokafka's own, and the group's generation that read it."""

    record: Record
    fetched: Any
    generation: int


class Source:
    """Reads the source topic of a stage as a member of its consumer group."""

    def __init__(self, stage: StageName, settings: Settings) -> None:
        self._app = _app(stage, settings, self._deliver)
        self._stage = stage
        self._settings = settings
        self._arrived: deque[Delivery] = deque()  # not taken by the loop yet
        self._some_arrived = asyncio.Event()
        self._some_taken = asyncio.Event()

    def connect(
        self,
        take: Callable[[], Awaitable[None]],
        assigned: Callable[[int], None],
        revoked: Callable[[], Awaitable[None]],
        stopping: Callable[[], Awaitable[None]],
    ) -> None:
        """Sets the callbacks: `take` runs as the agent, `assigned` gets the number of partitions at each assignment.

        Faust gives partitions back when `revoked` returns, and stops when `stopping` returns; it commits what is
        acknowledged by then.
        """

        async def taking(stream: Any) -> None:
            await take()

        async def on_revoked(app: faust.App, partitions: set[Any], **_: Any) -> None:
            await revoked()
            await self.commit()
            self._arrived.clear()  # comes again, here or at another worker
            self._some_taken.set()

        async def on_assigned(app: faust.App, partitions: set[Any], **_: Any) -> None:
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

    async def _deliver(self, fetched: Sequence[Any], generation: int) -> None:
        """Adds the records of one fetch; returns when there is room for those of the next."""
        self._arrived.extend(Delivery(as_record(one), one, generation) for one in fetched)
        self._some_arrived.set()
        while len(self._arrived) >= self._settings.batch_size:
            self._some_taken.clear()
            await self._some_taken.wait()

    async def take(self) -> list[Delivery]:
        """What has arrived, up to `batch_size` records with `batch_bytes` together; waits for at least one record."""
        while not self._arrived:
            self._some_arrived.clear()
            await self._some_arrived.wait()
        taken = next(split(islice(self._arrived, self._settings.batch_size), _bytes, self._settings.batch_bytes))
        for _ in taken:
            self._arrived.popleft()
        self._some_taken.set()
        return taken

    def current(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """The deliveries of the current assignment; Kafka delivers the others again, here or to another worker."""
        generation = self._app.consumer_generation_id
        return [delivery for delivery in deliveries if delivery.generation == generation]

    @property
    def has_more(self) -> bool:
        """Whether records have arrived that the loop has not taken."""
        return bool(self._arrived)

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """Marks these as done; Faust commits them in the background."""
        self._app.consumer.acknowledge([delivery.fetched for delivery in deliveries])

    async def commit(self) -> None:
        """Commits what is acknowledged; returns when Kafka has it."""
        await self._app.consumer.commit()  # if a commit is in progress, this only waits for its end
        await self._app.consumer.commit()

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


def _app(stage: StageName, settings: Settings, deliver: Deliver) -> faust.App:
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
        consumer_max_fetch_size=FETCH_BYTES,
        broker_commit_interval=settings.commit_interval,
        stream_wait_empty=False,
    )
    expired = metrics.records_expired.labels(stage).inc
    app.transport = Transport(app, deliver, expired, settings.kafka_rack)
    return app


def _credentials(
    settings: Settings,
) -> faust.SASLCredentials | OAuthCredentials | faust.SSLCredentials | None:
    """The security arguments of aiokafka's clients, as Faust's types."""
    arguments = security.arguments(settings)
    context = arguments.get("ssl_context")
    if tokens := arguments.get("sasl_oauth_token_provider"):
        return OAuthCredentials(oauth_cb=tokens, ssl_context=context)
    if "sasl_mechanism" in arguments:
        return faust.SASLCredentials(
            username=arguments["sasl_plain_username"],
            password=arguments["sasl_plain_password"],
            mechanism=arguments["sasl_mechanism"],
            ssl_context=context,
        )
    return faust.SSLCredentials(context) if context else None


def _bytes(delivery: Delivery) -> int:
    return delivery.record.size + sum(len(value or b"") for _, value in delivery.record.headers)


def as_record(fetched: Any) -> Record:
    """A record of aiokafka as a `Record`."""
    return Record(
        fetched.topic,
        fetched.partition,
        fetched.offset,
        fetched.key,
        fetched.value,
        fetched.timestamp,
        tuple(fetched.headers),
    )
