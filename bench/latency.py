"""Measures how long a chunk takes from its publication until both stores have it, while little or nothing else comes.

    STREAM_ENV_FILE=.local/stream.env python bench/latency.py

It needs a running flow, that of `make demo` for example. It publishes docstrings under names of its own, one after the
other and then a few a second, asks both stores by chunk_id, and deletes its chunks at the end.
"""

import asyncio
import time
import uuid
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from aiokafka import AIOKafkaProducer
from measure import device
from rich.console import Console
from search import Spread

from stream import config, corpus
from stream.config import Settings
from stream.kafka import clients
from stream.records import Chunk
from stream.stores import Stores, open_stores

app = typer.Typer(pretty_exceptions_enable=False)
console = Console(stderr=True)

EVERY = 0.01  # seconds between two questions to a store
PAUSE = 1.0  # seconds between two lone chunks, and at most until a chunk is there
WARM_UP = 10  # chunks that are not measured


class Watch:
    """Asks both stores for the chunks that were published, and notes how long each took to be in both."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores
        self._waiting: dict[str, float] = {}
        self.seconds: list[float] = []

    def published(self, chunk_id: str) -> None:
        """The chunk was sent now."""
        self._waiting[chunk_id] = time.perf_counter()

    @property
    def done(self) -> bool:
        """Whether no chunk is missing."""
        return not self._waiting

    async def run(self) -> None:
        """Asks until it is cancelled."""
        while True:
            if asked := list(self._waiting):
                found = await asyncio.gather(*(store.stored(asked) for store in self._stores.both))
                now = time.perf_counter()
                self.seconds += [now - self._waiting.pop(one) for one in asked if all(one in held for held in found)]
            await asyncio.sleep(EVERY)


async def publish(producer: AIOKafkaProducer, settings: Settings, of: Chunk | None, chunk_id: str) -> None:
    """Sends a chunk, or its tombstone."""
    value = None if of is None else orjson.dumps(of)
    await producer.send_and_wait(settings.topic, value, key=chunk_id.encode())


async def measure(
    settings: Settings, stores: Stores, producer: AIOKafkaProducer, chunks: Sequence[Chunk], rate: float | None
) -> Spread:
    """Chunks at a rate a second; without one, each is sent a second after the last one has arrived."""
    watch = Watch(stores)
    watching = asyncio.create_task(watch.run())
    began = time.perf_counter()
    for n, one in enumerate(chunks):
        if rate is None:
            await asyncio.sleep(PAUSE)
        else:
            await asyncio.sleep(max(began + n / rate - time.perf_counter(), 0))
        watch.published(one["chunk_id"])
        await publish(producer, settings, one, one["chunk_id"])
        while rate is None and not watch.done:
            await asyncio.sleep(EVERY)
    while not watch.done:
        await asyncio.sleep(EVERY)
    watching.cancel()
    return Spread.of(watch.seconds[WARM_UP:])


@app.command()
def main(
    lone: Annotated[int, typer.Option(help="Lone chunks.")] = 60,
    rate: Annotated[float, typer.Option(help="Chunks a second.")] = 20,
    seconds: Annotated[float, typer.Option(help="Seconds at that rate.")] = 20,
    out: Annotated[Path, typer.Option(help="The result.")] = Path("docs/figures/latency.json"),
) -> None:
    """Latency at low load."""

    async def run() -> dict[str, Any]:
        settings = config.load()
        name = uuid.uuid4().hex[:8]
        count = lone + WARM_UP + round(rate * seconds)
        chunks = [one | {"chunk_id": f"bench-{name}-{n}"} for n, one in enumerate(islice(corpus.chunks(), count))]
        async with open_stores(settings) as stores, clients.producer(settings, linger_ms=0) as producer:
            results: dict[str, Any] = {"device": device()}
            results["lone"] = await measure(settings, stores, producer, chunks[: lone + WARM_UP], None)
            console.print(results, highlight=False)
            results[f"{rate:g} a second"] = await measure(settings, stores, producer, chunks[lone + WARM_UP :], rate)
            console.print(results, highlight=False)
            for one in chunks:
                await publish(producer, settings, None, one["chunk_id"])
            return results

    out.write_bytes(orjson.dumps(asyncio.run(run()), option=orjson.OPT_INDENT_2) + b"\n")


if __name__ == "__main__":
    app()
