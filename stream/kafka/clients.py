"""Clients of Kafka as this project uses them.

Each raises `Outage` if no broker answers, and `ConfigurationError` if a broker rejects the TLS or SASL settings.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaConnectionError, UnknownTopicOrPartitionError, for_code

from stream.config import Settings
from stream.errors import ConfigurationError, Outage
from stream.kafka import record_batches, security
from stream.records import Headers

record_batches.read_every_batch()


def _reach(settings: Settings) -> dict[str, Any]:
    return {"bootstrap_servers": settings.kafka_servers, **security.arguments(settings)}


@asynccontextmanager
async def _started(settings: Settings, client: Any, stop: str) -> AsyncIterator[Any]:
    try:
        try:
            await client.start()
        except KafkaConnectionError:
            raise await security.startup_error(settings) from None
        yield client
    finally:
        await asyncio.sleep(0)  # a task of aiokafka that has not begun would interrupt `stop`, and fetching would go on
        try:
            await getattr(client, stop)()
        except asyncio.CancelledError:  # aiokafka raises it when it cancels its own fetch task
            if (task := asyncio.current_task()) and task.cancelling():
                raise


@asynccontextmanager
async def admin(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    """An admin client."""
    async with _started(settings, AIOKafkaAdminClient(**_reach(settings)), "close") as client:
        yield client


@asynccontextmanager
async def producer(settings: Settings, linger_ms: int = 5) -> AsyncIterator[AIOKafkaProducer]:
    """A producer whose acknowledgement means that all in-sync replicas have the record, once and in order.

    It waits `linger_ms` for more records before it sends: 0 for a caller that makes batches itself.
    """
    client = AIOKafkaProducer(
        **_reach(settings),
        acks="all",
        enable_idempotence=True,
        linger_ms=linger_ms,
        max_batch_size=min(2**20, settings.max_message_bytes),  # the topic's limit counts for a batch
        max_request_size=settings.max_message_bytes,
    )
    async with _started(settings, client, "stop") as started:
        yield started


@asynccontextmanager
async def letter_producer(settings: Settings) -> AsyncIterator[AIOKafkaProducer]:
    """A producer for dead letters, acknowledged by all in-sync replicas.

    It compresses, because a record that arrived compressed may be larger than the topic's limit without compression.
    It is not idempotent, because an idempotent producer is out of sequence after the broker has rejected one record.
    """
    client = AIOKafkaProducer(**_reach(settings), acks="all", compression_type="gzip", max_request_size=2**31 - 1)
    async with _started(settings, client, "stop") as started:
        yield started


async def send_letter(
    producer: AIOKafkaProducer, topic: str, key: bytes | None, value: bytes | None, headers: Headers
) -> None:
    """Sends one record and waits for its acknowledgement. The record may have neither key nor value.

    aiokafka's `send` rejects such a record, but a topic that is not compacted may contain one.
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
    """A consumer without automatic assignment and without automatic commits.

    It reads committed records only. Its `end_offsets` are last stable offsets: they end at the oldest open transaction.
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
    """A client that asks for first and end offsets and reads no records; its `end_offsets` are high watermarks."""
    client = AIOKafkaConsumer(**_reach(settings), enable_auto_commit=False, isolation_level="read_uncommitted")
    async with _started(settings, client, "stop") as started:
        yield started


async def commit(settings: Settings, group: str, offsets: Mapping[TopicPartition, int]) -> None:
    """Sets a consumer group's offsets without joining it; raises `CommitFailedError` while the group has members."""
    async with consumer(settings, group=group) as client:
        client.assign(list(offsets))
        await client.commit(dict(offsets))


async def partitions(client: AIOKafkaAdminClient, topics: Iterable[str]) -> list[TopicPartition]:
    """All partitions of the topics; raises `ConfigurationError` if a topic is missing."""
    described = await client.describe_topics(list(topics))
    require_all((topic["topic"], topic["error_code"]) for topic in described)
    return [TopicPartition(topic["topic"], p["partition"]) for topic in described for p in topic["partitions"]]


def require_all(topics: Iterable[tuple[str, int]]) -> None:
    """Raises `ConfigurationError` if Kafka says that a topic does not exist, `Outage` for any other error."""
    errors = {name: for_code(code) for name, code in topics if code}
    if missing := sorted(name for name, error in errors.items() if error is UnknownTopicOrPartitionError):
        raise ConfigurationError(f"topics are missing: {', '.join(missing)}; `stream topics create` makes them")
    for name, error in errors.items():
        raise Outage(f"Kafka returned an error for the topic {name}: {error.__name__}")
