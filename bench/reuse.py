"""Where should the vector of an unchanged chunk come from: from Neo4j, or from a compacted topic?

    STREAM_ENV_FILE=.local/stream.env python bench/reuse.py

Puts chunks into both, then asks each for the vectors of 256 at a time. Of the topic it is assumed that somebody knows
at which offset a chunk lies; what reading the topic costs, to find that out, is measured beside. What was put there
stays: use servers that can be thrown away.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import orjson
import typer
from aiokafka import AIOKafkaConsumer, TopicPartition
from data import chunk, embedded, expanded, own_topics, publish
from matplotlib.axes import Axes
from measure import device, save

from stream import config
from stream.kafka import reader, topics
from stream.records import Expanded
from stream.stages.reuse import Reuse
from stream.stores import open_stores
from stream.stores.base import Put
from stream.vectors import unpack

BATCH = 256
FETCH_BYTES = 48 * 2**10  # one record and a little: what comes with it is thrown away by the next seek

Ask = Callable[[list[Expanded]], Awaitable[Any]]


async def rate(ask: Ask, batches: list[list[Expanded]]) -> float:
    """Vectors a second, one batch after the other."""
    started = time.perf_counter()
    for batch in batches:
        assert await ask(batch) == [each["embedding_qwen"] for each in batch]
    return sum(map(len, batches)) / (time.perf_counter() - started)


async def bench(count: int) -> dict[str, Any]:
    """Both ways, in the order in which chunks came and in none."""
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

        async def fetched(batch: list[Expanded]) -> list[str]:
            vectors = []
            for each in batch:
                partition, offset = places[each["chunk_id"].encode()]
                if await client.position(partition) != offset:
                    client.seek(partition, offset)
                record = await client.getone(partition)
                vectors.append(orjson.loads(record.value)["embedding_qwen"])
            return vectors

        for name, batches in orders.items():
            rates[f"the topic, {name}"] = await rate(fetched, batches)
    for name, found in rates.items():
        print(f"{name}: {found:,.0f} vectors/s", file=sys.stderr)
    return {"device": device(), "chunks": count, "vectors_a_second": rates}


def draw(axes: Axes, rates: dict[str, float]) -> None:
    """Vectors a second."""
    bars = axes.barh(list(rates), list(rates.values()))
    axes.bar_label(bars, fmt="{:,.0f}")
    axes.set(xlabel="vectors a second")


def main(
    chunks: Annotated[int, typer.Option(help="How many lie in both.")] = 5_000,
    out: Annotated[Path, typer.Option(help="Where the results go, .json and .svg.")] = Path("docs/figures/reuse"),
) -> None:
    """Ask Neo4j and a topic for vectors that they have."""
    results = asyncio.run(bench(chunks))
    save(out, results, lambda axes: draw(axes, results["vectors_a_second"]))


if __name__ == "__main__":
    typer.run(main)
