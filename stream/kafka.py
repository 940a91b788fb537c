"""Clients of Kafka as this project uses them.

Each raises `Outage` if no broker answers and `ConfigurationError` if one answers but does not let us in.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, NoReturn

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaConnectionError, UnknownTopicOrPartitionError, for_code

from stream import header_names, kafka_security
from stream.config import Settings
from stream.errors import ConfigurationError, Outage
from stream.records import Headers, Record

# Seconds without progress until whoever reads a topic gives up. An open transaction holds a reader back for at most its
# producer's transaction.timeout.ms, 60 s by default, and the 10 s in which brokers look for those that ran out.
SILENCE = 90.0

header_names.escape_what_is_not_utf8()


def _reach(settings: Settings) -> dict[str, Any]:
    return {"bootstrap_servers": settings.kafka_servers, **kafka_security.arguments(settings)}


@asynccontextmanager
async def _started(settings: Settings, client: Any, stop: str) -> AsyncIterator[Any]:
    try:
        try:
            await client.start()
        except KafkaConnectionError:
            raise await kafka_security.refusal(settings) from None
        yield client
    finally:
        try:
            await getattr(client, stop)()
        except asyncio.CancelledError:  # aiokafka lets out that of its own task which waited to fetch again
            if (task := asyncio.current_task()) and task.cancelling():
                raise


@asynccontextmanager
async def admin(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    """An admin client."""
    async with _started(settings, AIOKafkaAdminClient(**_reach(settings)), "close") as client:
        yield client


@asynccontextmanager
async def producer(settings: Settings) -> AsyncIterator[AIOKafkaProducer]:
    """A producer whose acknowledgement means that all in-sync replicas have the record, once and in order."""
    client = AIOKafkaProducer(
        **_reach(settings),
        acks="all",
        enable_idempotence=True,
        linger_ms=5,
        max_batch_size=2**20,
        max_request_size=settings.max_message_bytes,
    )
    async with _started(settings, client, "stop") as started:
        yield started


@asynccontextmanager
async def letter_producer(settings: Settings) -> AsyncIterator[AIOKafkaProducer]:
    """A producer for dead letters, acknowledged by all in-sync replicas.

    Compressed, because what came compressed may be larger than the topic carries; and not idempotent, because the
    broker's refusal of one record would leave an idempotent producer out of sequence.
    """
    client = AIOKafkaProducer(**_reach(settings), acks="all", compression_type="gzip", max_request_size=2**31 - 1)
    async with _started(settings, client, "stop") as started:
        yield started


async def send_letter(
    producer: AIOKafkaProducer, topic: str, key: bytes | None, value: bytes | None, headers: Headers
) -> None:
    """Sends one record and waits for its acknowledgement, also one that has neither key nor value.

    aiokafka refuses to `send` that; a record of somebody else's may be so, in a topic that is not compacted.
    """
    if key is not None or value is not None:
        await producer.send_and_wait(topic, key=key, value=value, headers=headers)
        return
    batch = producer.create_batch()
    batch.append(key=None, value=None, timestamp=None, headers=headers)
    partition = min(await producer.partitions_for(topic))
    await (await producer.send_batch(batch, topic, partition=partition))


@asynccontextmanager
async def consumer(settings: Settings, group: str | None = None) -> AsyncIterator[AIOKafkaConsumer]:
    """A consumer to which partitions are assigned by hand, and that commits, for a group, only when told to.

    It reads committed records only; its `end_offsets` are those of the oldest open transactions (last stable offsets).
    """
    client = AIOKafkaConsumer(
        **_reach(settings),
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        fetch_max_bytes=8 * 2**20,
        isolation_level="read_committed",
    )
    async with _started(settings, client, "stop") as started:
        yield started


@asynccontextmanager
async def offsets(settings: Settings) -> AsyncIterator[AIOKafkaConsumer]:
    """A client to ask where partitions begin and end, and not to read with; its `end_offsets` are high watermarks."""
    client = AIOKafkaConsumer(**_reach(settings), enable_auto_commit=False, isolation_level="read_uncommitted")
    async with _started(settings, client, "stop") as started:
        yield started


async def commit(settings: Settings, group: str, offsets: Mapping[TopicPartition, int]) -> None:
    """Sets a consumer group's offsets from outside; raises `CommitFailedError` while it has members."""
    async with consumer(settings, group=group) as client:
        client.assign(list(offsets))
        await client.commit(dict(offsets))


async def partitions(client: AIOKafkaAdminClient, topics: Iterable[str]) -> list[TopicPartition]:
    """All partitions of the topics; raises `ConfigurationError` if a topic is missing."""
    described = await client.describe_topics(list(topics))
    require_all((topic["topic"], topic["error_code"]) for topic in described)
    return [TopicPartition(topic["topic"], p["partition"]) for topic in described for p in topic["partitions"]]


def require_all(topics: Iterable[tuple[str, int]]) -> None:
    """Raises `ConfigurationError` if Kafka says that one of these does not exist, `Outage` for any other error."""
    errors = {name: for_code(code) for name, code in topics if code}
    if missing := sorted(name for name, error in errors.items() if error is UnknownTopicOrPartitionError):
        raise ConfigurationError(f"topics are missing: {', '.join(missing)}; `stream topics create` makes them")
    for name, error in errors.items():
        raise Outage(f"Kafka does not say what it knows of the topic {name}: {error.__name__}")


async def read_to_end(
    settings: Settings,
    topic: str,
    since: Mapping[int, int] | None = None,
    only: Collection[int] | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> AsyncIterator[Record]:
    """Every committed record of a topic to the end as it is now, in order within a partition; keeps a few fetches.

    The end is the high watermark: a transaction that is open is waited for, so that nothing published behind it is
    overlooked. `since` says at which offset to begin, by partition; the default is the oldest record kept. `only` names
    the partitions to read; the default is all. `progress` is told how many offsets of how many lie behind. Raises
    `Outage` if Kafka falls silent on the way, or if a transaction stays open for longer than `SILENCE`.
    """
    async with admin(settings) as cluster:
        assigned = [tp for tp in await partitions(cluster, [topic]) if only is None or tp.partition in only]
    async with offsets(settings) as client:
        ends = await client.end_offsets(assigned)
        oldest = await client.beginning_offsets(assigned)
    async with consumer(settings) as client:
        client.assign(assigned)
        starts = {tp: max(oldest[tp], (since or {}).get(tp.partition, 0)) for tp in assigned}
        for tp, start in starts.items():
            client.seek(tp, start)
        total = sum(max(ends[tp] - start, 0) for tp, start in starts.items())
        left, moved = total, time.monotonic()
        while left:
            progress(total - left, total)
            for batch in (await client.getmany(timeout_ms=500)).values():
                for message in batch:
                    if message.offset < ends[TopicPartition(message.topic, message.partition)]:
                        yield Record(
                            message.topic,
                            message.partition,
                            message.offset,
                            message.key,
                            message.value,
                            message.timestamp,
                            message.headers,
                        )
            # The position, not the last record seen, tells the end: compaction leaves gaps, also at the end.
            before, left = left, sum([max(end - await client.position(tp), 0) for tp, end in ends.items()])
            if left < before:
                moved = time.monotonic()
            elif time.monotonic() - moved > SILENCE:
                await _raise_why_it_stands(client, ends, left)
        progress(total, total)


async def _raise_why_it_stands(client: AIOKafkaConsumer, ends: Mapping[TopicPartition, int], left: int) -> NoReturn:
    for tp, end in ends.items():
        stable = client.last_stable_offset(tp)
        if stable is not None and stable <= await client.position(tp) < end:
            raise Outage(
                f"after {SILENCE:g} s a transaction is still open in {tp.topic}/{tp.partition} at offset {stable:,}, "
                "and nothing behind it can be read; try again when its producer has ended it, or when Kafka has "
                "aborted it after the producer's transaction.timeout.ms"
            )
    topic = next(iter(ends)).topic
    raise Outage(f"Kafka has sent nothing of {topic} for {SILENCE:g} s, {left:,} offsets before its end")
