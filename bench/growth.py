"""Measures a stage's own cost with one process and with two, on a topic of two partitions.

    STREAM_ENV_FILE=.local/stream.env python bench/growth.py

The workers are those of `plane.py`: everything that a stage does beside its model. The broker runs on the same cores.
"""

import asyncio
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from aiokafka import TopicPartition
from data import chunk, own_topics, publish
from measure import device
from plane import SIZES, STAGE, Size, padded, summary
from workers import EVERY, TENTH, Sample, rate

from stream import config
from stream.config import Settings
from stream.kafka import clients, topics

PARTITIONS = 2


async def measured(settings: Settings, size: Size, records: int, processes: int) -> float:
    """Records per second between the first tenth and the last."""
    target = topics.target(settings, STAGE)
    partitions = [TopicPartition(str(target), n) for n in range(PARTITIONS)]
    command = [sys.executable, Path(__file__).with_name("peers.py"), "ours", size.contract, str(records)]
    command += ["--topic", settings.topic, "--flow", settings.flow, "--peers", "."]
    samples: list[Sample] = []
    async with clients.offsets(settings) as client:
        with ExitStack() as running:
            workers = []
            for n in range(processes):
                variables = os.environ | {"STREAM_INSTANCE": f"growth{n}"}
                workers.append(
                    running.enter_context(subprocess.Popen(command, env=variables, stderr=subprocess.DEVNULL))
                )
                running.callback(workers[-1].terminate)
            while not samples or samples[-1].done < records * (1 - TENTH):
                await asyncio.sleep(EVERY)
                ended = [worker for worker in workers if worker.poll() is not None]
                assert not ended, f"a worker ended with {ended[0].returncode}"
                done = sum((await client.end_offsets(partitions)).values())
                if done > records * TENTH:
                    samples.append(Sample(time.monotonic(), done, None))
    return rate(samples)


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
