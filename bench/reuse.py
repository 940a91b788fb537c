"""Compares two sources for the vector of an unchanged chunk: Neo4j and a compacted topic.

    STREAM_ENV_FILE=.local/stream.env python bench/reuse.py

Puts chunks into both, then reads the vectors of 256 chunks at a time from each. For the topic, the offset of each chunk
is assumed to be known; the cost of finding the offsets, by reading the topic once, is measured separately. The chunks
and the topic are not deleted: use disposable servers.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from aiokafka import AIOKafkaConsumer, TopicPartition
from data import chunk, embedded, expanded, own_topics, publish
from matplotlib.axes import Axes
from measure import device, save

from stream import config
from stream.kafka import reader, topics
from stream.records import VECTOR_HEADER, Expanded, header
from stream.stages.reuse import Reuse
from stream.stores import open_stores
from stream.stores.base import Put
from stream.vectors import unpack

BATCH = 256
FETCH_BYTES = 48 * 2**10  # a little more than one record: the next seek discards everything after the first

Read = Callable[[list[Expanded]], Awaitable[Any]]


async def rate(read: Read, batches: list[list[Expanded]]) -> float:
    """Vectors per second, one batch after another."""
    started = time.perf_counter()
    for batch in batches:
        assert await read(batch) == [each["embedding_qwen"] for each in batch]
    return sum(map(len, batches)) / (time.perf_counter() - started)


async def bench(count: int) -> dict[str, Any]:
    """Measures both sources, in the order of publication and in random order."""
    settings = await own_topics(config.load())
    chunks = [expanded(chunk(n)) for n in range(count)]
    shuffled = [chunks[n] for n in np.random.default_rng(0).permutation(count)]
    orders = {
        name: [order[at : at + BATCH] for at in range(0, count, BATCH)]
        for name, order in (("in order", chunks), ("shuffled", shuffled))
    }
    rates: dict[str, float] = {}
    async with open_stores(settings) as stores:
        await stores.set_up()
        for batch in orders["in order"]:
            await stores.neo4j.write([Put(each, unpack(each["embedding_qwen"])) for each in batch])
        known = Reuse(stores.neo4j, chunks[0]["embedding_provenance"])
        for name, batches in orders.items():
            rates[f"Neo4j, {name}"] = await rate(known, batches)
    await publish(settings, "expand", (embedded(each) for each in chunks))
    topic, places = topics.source(settings, "expand"), dict[bytes, tuple[TopicPartition, int]]()
    started = time.perf_counter()
    async for record in reader.read_to_end(settings, topic):
        places[record.key or b""] = TopicPartition(topic, record.partition), record.offset
    rates["the topic, read through once"] = count / (time.perf_counter() - started)
    small = {"max_partition_fetch_bytes": FETCH_BYTES, "fetch_max_bytes": FETCH_BYTES, "fetch_max_wait_ms": 10}
    async with AIOKafkaConsumer(bootstrap_servers=settings.kafka_servers, enable_auto_commit=False, **small) as client:
        client.assign(list({partition for partition, _ in places.values()}))

        async def fetched(batch: list[Expanded]) -> list[bytes]:
            vectors = []
            for each in batch:
                partition, offset = places[each["chunk_id"].encode()]
                if await client.position(partition) != offset:
                    client.seek(partition, offset)
                record = await client.getone(partition)
                vectors.append(header(record.headers, VECTOR_HEADER) or b"")
            return vectors

        for name, batches in orders.items():
            rates[f"the topic, {name}"] = await rate(fetched, batches)
    for name, found in rates.items():
        print(f"{name}: {found:,.0f} vectors/s", file=sys.stderr)
    return {"device": device(), "chunks": count, "vectors_a_second": rates}


def draw(axes: Axes, rates: dict[str, float]) -> None:
    """Draws vectors per second."""
    bars = axes.barh(list(rates), list(rates.values()))
    axes.bar_label(bars, fmt="{:,.0f}")
    axes.set(xlabel="vectors a second")


def main(
    chunks: Annotated[int, typer.Option(help="Number of chunks in both.")] = 5_000,
    out: Annotated[Path, typer.Option(help="Output path; writes .json and .svg.")] = Path("docs/figures/reuse"),
) -> None:
    """Read vectors from Neo4j and from a topic."""
    results = asyncio.run(bench(chunks))
    save(out, results, lambda axes: draw(axes, results["vectors_a_second"]))


if __name__ == "__main__":
    typer.run(main)
