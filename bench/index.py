"""Measures how many chunks a second index workers write into both stores, with one process and with two.

    STREAM_ENV_FILE=.local/stream.env python bench/index.py

Vectors have 4,096 dimensions. Each run has a topic of two partitions, indexes and a label of its own; the indexes are
deleted.
"""

import asyncio
import sys
import uuid
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from data import chunk, expanded, own_topics, publish
from measure import device
from plane import summary
from sink import DIMENSIONS, delete
from workers import LOGS, rate, sampled, started

from stream import config
from stream.kafka import clients, topics
from stream.kafka.lag import committed
from stream.stores import open_stores

PARTITIONS = 2
PATIENCE = 300.0  # seconds for one run


async def measured(chunks: int, processes: int) -> float:
    """Chunks per second between the first tenth and the last, by the committed offsets."""
    own = f"bench{uuid.uuid4().hex[:8]}"
    names = {"opensearch_alias": own, "neo4j_index": own, "neo4j_label": own.capitalize()}
    names |= {"partitions": str(PARTITIONS), "replication_factor": "1", "embed_dimensions": str(DIMENSIONS)}
    settings = await own_topics(config.load(**names))
    await publish(settings, "index", (expanded(chunk(n)) for n in range(chunks)))
    variables = {f"STREAM_{name.upper()}": value for name, value in {**names, "topic": settings.topic}.items()}
    variables |= {"STREAM_WEB_PORT": "0", "STREAM_COMMIT_INTERVAL": "0.1", "STREAM_LOG_LEVEL": "warning"}
    command = [sys.executable, "-m", "stream", "worker", "index"]
    async with open_stores(settings) as stores, clients.admin(settings) as admin, asyncio.timeout(PATIENCE):

        async def done() -> int:
            return sum((await committed(admin, topics.group(settings, "index"))).values())

        await stores.set_up()
        each = [variables | {"STREAM_INSTANCE": f"index{n}"} for n in range(processes)]
        with started(command, LOGS / f"{settings.topic}.log", each) as workers:
            samples = await sampled(workers, chunks, done)
        await delete(settings, stores)
    return rate(samples)


async def bench(chunks: int, rounds: int) -> dict[str, Any]:
    """One process, then two, in turn."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    for n in range(rounds):
        for processes in (1, 2) if n % 2 == 0 else (2, 1):
            rates[processes].append(await measured(chunks, processes))
            print(f"{processes}: {rates[processes][-1]:,.0f} chunks/s", file=sys.stderr)
    return {str(processes): summary(found) for processes, found in rates.items()}


def main(
    chunks: Annotated[int, typer.Option(help="Chunks of a run.")] = 4_000,
    rounds: Annotated[int, typer.Option(help="Runs of each number of processes.")] = 3,
    out: Annotated[Path, typer.Option(help="The result.")] = Path("docs/figures/index.json"),
) -> None:
    """Measure index workers, one process and two."""
    results = {"device": device(), "dimensions": DIMENSIONS, "chunks_a_second": asyncio.run(bench(chunks, rounds))}
    out.write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2) + b"\n")


if __name__ == "__main__":
    typer.run(main)
