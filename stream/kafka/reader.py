"""Reading a topic once, from where one likes to its end as it is now."""

import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from typing import NoReturn

from aiokafka import AIOKafkaConsumer, TopicPartition

from stream.config import Settings
from stream.errors import Outage
from stream.kafka.clients import admin, consumer, offsets, partitions
from stream.records import Record

# Seconds without progress until whoever reads a topic gives up. An open transaction holds a reader back for at most its
# producer's transaction.timeout.ms, 60 s by default, and the 10 s in which brokers look for those that ran out.
SILENCE = 90.0


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
