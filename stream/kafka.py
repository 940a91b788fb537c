"""Clients of Kafka as this project uses them; each raises `Outage` if no broker answers."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaConnectionError

from stream.config import Settings
from stream.errors import ConfigurationError, Outage
from stream.records import Record


@asynccontextmanager
async def _started(settings: Settings, client: Any, stop: str) -> AsyncIterator[Any]:
    try:
        try:
            await client.start()
        except KafkaConnectionError:
            raise Outage(
                f"Kafka does not answer at {settings.kafka_servers}; start it, or set STREAM_KAFKA_SERVERS"
            ) from None
        yield client
    finally:
        await getattr(client, stop)()


@asynccontextmanager
async def admin(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    """An admin client."""
    async with _started(settings, AIOKafkaAdminClient(bootstrap_servers=settings.kafka_servers), "close") as client:
        yield client


@asynccontextmanager
async def producer(settings: Settings) -> AsyncIterator[AIOKafkaProducer]:
    """A producer whose acknowledgement means that all in-sync replicas have the record, once and in order."""
    client = AIOKafkaProducer(
        bootstrap_servers=settings.kafka_servers,
        acks="all",
        enable_idempotence=True,
        linger_ms=5,
        max_batch_size=2**20,
        max_request_size=settings.max_letter_bytes,
    )
    async with _started(settings, client, "stop") as started:
        yield started


@asynccontextmanager
async def consumer(settings: Settings) -> AsyncIterator[AIOKafkaConsumer]:
    """A consumer that neither joins a group nor commits."""
    client = AIOKafkaConsumer(
        bootstrap_servers=settings.kafka_servers,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        fetch_max_bytes=8 * 2**20,
    )
    async with _started(settings, client, "stop") as started:
        yield started


async def partitions(client: AIOKafkaAdminClient, topics: Iterable[str]) -> list[TopicPartition]:
    """All partitions of the topics; raises `ConfigurationError` if a topic is missing."""
    described = await client.describe_topics(list(topics))
    if missing := sorted(topic["topic"] for topic in described if topic["error_code"]):
        raise ConfigurationError(f"topics are missing: {', '.join(missing)}; `stream topics create` makes them")
    return [TopicPartition(topic["topic"], p["partition"]) for topic in described for p in topic["partitions"]]


async def read_to_end(settings: Settings, topic: str) -> AsyncIterator[Record]:
    """Every record of a topic from the oldest kept to the end as it is now, in order within a partition."""
    async with admin(settings) as cluster:
        assigned = await partitions(cluster, [topic])
    async with consumer(settings) as client:
        client.assign(assigned)
        ends = await client.end_offsets(assigned)
        await client.seek_to_beginning(*assigned)
        # The position, not the last record seen, tells the end: compaction leaves gaps, also at the end.
        while any([await client.position(tp) < end for tp, end in ends.items()]):
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
