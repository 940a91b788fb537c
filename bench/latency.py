"""Measures how long a chunk takes from its publication until both stores have it, while little or nothing else comes.

    STREAM_ENV_FILE=.local/stream.env python bench/latency.py

It needs a running flow, that of `make demo` for example. It publishes docstrings under names of its own, a few a
second and then one after the other, and deletes them at the end. The times are those of the index worker's histogram
`stream_end_to_end_seconds`: asking the stores every few milliseconds would take the cores from what is measured. That
both stores hold the chunks is checked afterwards.
"""

import asyncio
import itertools
import math
import time
import uuid
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import httpx
import orjson
import typer
from aiokafka import AIOKafkaProducer
from measure import device
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from search import Spread

from stream import config, corpus
from stream.config import Settings
from stream.kafka import clients
from stream.records import Chunk
from stream.stores import open_stores

app = typer.Typer(pretty_exceptions_enable=False)
console = Console(stderr=True)

HISTOGRAM = "stream_end_to_end_seconds"
PAUSE = 0.5  # seconds between two lone chunks, and until one is asked for
PATIENCE = 120.0  # seconds until all chunks of a measurement are there
WARM_UP = 10  # chunks that are not measured


class Histogram(NamedTuple):
    """State of the histogram: count of each upper bound in seconds (cumulative), sum of all in seconds."""

    counts: dict[float, int]
    seconds: float

    @property
    def count(self) -> int:
        """Chunks so far."""
        return self.counts[math.inf]


async def histogram(metrics: httpx.AsyncClient) -> Histogram:
    """The present state."""
    text = (await metrics.get("/metrics")).text
    (family,) = (one for one in text_string_to_metric_families(text) if one.name == HISTOGRAM)
    counts = {float(one.labels["le"]): int(one.value) for one in family.samples if one.name.endswith("_bucket")}
    return Histogram(counts, next(one.value for one in family.samples if one.name.endswith("_sum")))


async def publish(producer: AIOKafkaProducer, settings: Settings, of: Chunk | None, chunk_id: str) -> None:
    """Sends a chunk, or its tombstone."""
    value = None if of is None else orjson.dumps(of)
    await producer.send_and_wait(settings.topic, value, key=chunk_id.encode())


async def grown(metrics: httpx.AsyncClient, count: int) -> Histogram:
    """The histogram when it has this count."""
    async with asyncio.timeout(PATIENCE):
        while (now := await histogram(metrics)).count < count:
            await asyncio.sleep(PAUSE)
    assert now.count == count, "something else is published to this flow"
    return now


async def alone(
    settings: Settings, metrics: httpx.AsyncClient, producer: AIOKafkaProducer, chunks: Sequence[Chunk]
) -> Spread:
    """Each chunk is sent when the one before is in both stores: its time is what it adds to the sum."""
    states = [await histogram(metrics)]
    for chunk in chunks:
        await publish(producer, settings, chunk, chunk["chunk_id"])
        await asyncio.sleep(PAUSE)
        states.append(await grown(metrics, states[-1].count + 1))
    return Spread.of([after.seconds - before.seconds for before, after in itertools.pairwise(states)][WARM_UP:])


async def at_a_rate(
    settings: Settings,
    metrics: httpx.AsyncClient,
    producer: AIOKafkaProducer,
    chunks: Sequence[Chunk],
    rate: float,
) -> dict[str, float]:
    """Milliseconds: the mean, and the bounds of the histogram that are not below a quantile."""
    before = await histogram(metrics)
    began = time.perf_counter()
    for n, chunk in enumerate(chunks):
        await asyncio.sleep(max(began + n / rate - time.perf_counter(), 0))
        await publish(producer, settings, chunk, chunk["chunk_id"])
    after = await grown(metrics, before.count + len(chunks))
    counts = {bound: count - before.counts[bound] for bound, count in after.counts.items()}

    def at_most(quantile: float) -> float:
        return 1000 * next(bound for bound, count in counts.items() if count >= quantile * len(chunks))

    mean = round(1000 * (after.seconds - before.seconds) / len(chunks), 1)
    return {"mean": mean, "p50 at most": at_most(0.5), "p95 at most": at_most(0.95)}


@app.command()
def main(
    lone: Annotated[int, typer.Option(help="Lone chunks.")] = 60,
    rates: Annotated[list[float], typer.Option("--rate", help="Chunks a second; repeatable.")] = [5, 10, 20],  # noqa: B006
    seconds: Annotated[float, typer.Option(help="Seconds at each rate.")] = 20,
    worker: Annotated[str, typer.Option(help="The index worker.")] = "http://127.0.0.1:19103",
    out: Annotated[Path, typer.Option(help="The result.")] = Path("docs/figures/latency.json"),
) -> None:
    """Latency at low load."""

    async def run() -> dict[str, Any]:
        settings = config.load()
        name = uuid.uuid4().hex[:8]
        numbers = [lone + WARM_UP, *(round(rate * seconds) for rate in rates)]
        texts = itertools.cycle(islice(corpus.chunks(), max(numbers)))  # the rates differ in nothing else
        parts: list[list[Chunk]] = []
        for part, number in enumerate(numbers):
            parts.append(
                [one | {"chunk_id": f"bench-{name}-{part}-{n}"} for n, one in enumerate(islice(texts, number))]
            )
        chunks = [one for part in parts for one in part]
        results: dict[str, Any] = {
            "device": device(),
            "characters": sum(len(one["text"]) for one in chunks) / len(chunks),
        }
        async with (
            open_stores(settings) as stores,
            clients.producer(settings, linger_ms=0) as producer,
            httpx.AsyncClient(base_url=worker) as metrics,
        ):
            for rate, part in zip(rates, parts[1:], strict=True):
                results[f"{rate:g} a second"] = await at_a_rate(settings, metrics, producer, part, rate)
            results["lone"] = await alone(settings, metrics, producer, parts[0])
            for store in stores.both:
                assert len(await store.stored([one["chunk_id"] for one in chunks])) == len(chunks)
            for one in chunks:
                await publish(producer, settings, None, one["chunk_id"])
        return results

    results = asyncio.run(run())
    console.print(results, highlight=False)
    out.write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2) + b"\n")


if __name__ == "__main__":
    app()
