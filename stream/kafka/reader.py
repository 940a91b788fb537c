"""Reads a topic once, from given offsets to its current end."""

import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from typing import NoReturn

from aiokafka import AIOKafkaConsumer, TopicPartition

from stream.config import Settings
from stream.errors import Outage
from stream.kafka.clients import admin, consumer, offsets, partitions
from stream.records import Record

# Seconds without progress until reading a topic fails. An open transaction blocks a reader for at most its producer's
# transaction.timeout.ms, 60 s by default, and the 10 s between two searches of the brokers for expired transactions.
STALL_TIMEOUT = 90.0


async def read_to_end(
    settings: Settings,
    topic: str,
    since: Mapping[int, int] | None = None,
    only: Collection[int] | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> AsyncIterator[Record]:
    """Every committed record of a topic up to its current end, in order within a partition; buffers a few fetches.

    The end is the high watermark. An open transaction is waited for, so that no record after it is missed. `since` is
    the offset to start at, by partition; the default is the oldest record kept. `only` names the partitions to read;
    the default is all. `progress` gets the offsets read so far and the offsets in total. Raises `Outage` if Kafka sends
    nothing for `STALL_TIMEOUT`, or if a transaction stays open for longer than that.
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
            # Compare the position with the end, not the last record: compaction leaves gaps, also at the end.
            before, left = left, sum([max(end - await client.position(tp), 0) for tp, end in ends.items()])
            if left < before:
                moved = time.monotonic()
            elif time.monotonic() - moved > STALL_TIMEOUT:
                await _raise_stalled(client, ends, left)
        progress(total, total)


async def _raise_stalled(client: AIOKafkaConsumer, ends: Mapping[TopicPartition, int], left: int) -> NoReturn:
    for tp, end in ends.items():
        stable = client.last_stable_offset(tp)
        if stable is not None and stable <= await client.position(tp) < end:
            raise Outage(
                f"a transaction is still open in {tp.topic}/{tp.partition} at offset {stable:,} after "
                f"{STALL_TIMEOUT:g} s, and no record after it can be read: try again when its producer has ended it, "
                "or when Kafka has aborted it after the producer's transaction.timeout.ms"
            )
    topic = next(iter(ends)).topic
    raise Outage(f"Kafka has sent nothing of {topic} for {STALL_TIMEOUT:g} s; {left:,} offsets were not read")
