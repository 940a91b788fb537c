"""Measures a stage's own cost with one process and with two, on a topic of two partitions.

    STREAM_ENV_FILE=.local/stream.env python bench/growth.py

The workers are those of `plane.py`: everything that a stage does beside its model. The broker runs on the same cores.
"""

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from data import chunk, own_topics, publish
from measure import device
from plane import SIZES, STAGE, Size, padded, summary
from workers import LOGS, rate, sampled, started, written

from stream import config
from stream.config import Settings

PARTITIONS = 2


async def measured(settings: Settings, size: Size, records: int, processes: int) -> float:
    """Records per second between the first tenth and the last."""
    command = [sys.executable, Path(__file__).with_name("peers.py"), "ours", size.contract, str(records)]
    command += ["--topic", settings.topic, "--flow", settings.flow, "--peers", "."]
    variables = [{"STREAM_INSTANCE": f"growth{n}"} for n in range(processes)]
    with started(command, LOGS / f"{settings.topic}.log", variables) as workers:
        async with written(settings, STAGE) as done:
            return rate(await sampled(workers, records, done))


async def bench(records: dict[str, int], rounds: int) -> dict[str, Any]:
    """One process, then two, in turn."""
    rates: dict[str, dict[int, list[float]]] = {size.name: {1: [], 2: []} for size in SIZES}
    for n in range(rounds):
        for size in SIZES:
            for processes in (1, 2) if n % 2 == 0 else (2, 1):
                settings = await own_topics(config.load(partitions=str(PARTITIONS), replication_factor="1"))
                await publish(settings, STAGE, (padded(chunk(n), size) for n in range(records[size.name])))
                found = await measured(settings, size, records[size.name], processes)
                rates[size.name][processes].append(found)
                print(f"{size.name}, {processes}: {found:,.0f} records/s", file=sys.stderr)
    return {name: {str(n): summary(found) for n, found in of.items()} for name, of in rates.items()}


def main(
    small: Annotated[int, typer.Option(help="Records of 2 KB in the topic.")] = 100_000,
    large: Annotated[int, typer.Option(help="Records of 20 KB in the topic.")] = 20_000,
    rounds: Annotated[int, typer.Option(help="Runs of each number of processes.")] = 3,
    out: Annotated[Path, typer.Option(help="The result.")] = Path("docs/figures/growth.json"),
) -> None:
    """Measure a stage's own cost with one process and with two."""
    counts = dict(zip((size.name for size in SIZES), (small, large), strict=True))
    results = {"device": device(), "records_a_second": asyncio.run(bench(counts, rounds))}
    out.write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2) + b"\n")


if __name__ == "__main__":
    typer.run(main)
