"""Runs workers and samples how many records are done."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

from aiokafka import TopicPartition

from stream.config import Settings, StageName
from stream.kafka import clients, topics

EVERY = 0.1  # seconds between two samples
TENTH = 0.1  # ignored at the beginning (workers start) and at the end (workers run out of records)
LOGS = Path(".local/logs")

Worker: TypeAlias = "subprocess.Popen[bytes]"


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample: monotonic seconds, number of output records, and the result of `look`."""

    at: float
    done: int
    seen: Any


@contextmanager
def started(
    command: Sequence[str | Path], log: Path, variables: Sequence[Mapping[str, str]] = ({},), seconds: float = 120
) -> Iterator[list[Worker]]:
    """Runs the command once for each set of environment variables, with its output in `log`; ends all at the end.

    Kills those that have not ended `seconds` after SIGTERM, and raises `TimeoutExpired`.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file, ExitStack() as running:
        workers = []
        for own in variables:
            workers.append(subprocess.Popen(command, env=os.environ | own, stdout=file, stderr=file))
            running.callback(ended, workers[-1], seconds)
            running.callback(workers[-1].terminate)
        yield workers


def ended(worker: Worker, seconds: float) -> None:
    """Waits for the end of a process that was told to end."""
    try:
        worker.wait(seconds)
    except subprocess.TimeoutExpired:
        worker.kill()
        raise


async def sampled(
    workers: Sequence[Worker],
    records: int,
    done: Callable[[], Awaitable[int]],
    look: Callable[[], Any] = time.monotonic,
) -> list[Sample]:
    """Samples from the first tenth of the records to the last. `done` says how many are done."""
    samples: list[Sample] = []
    while not samples or samples[-1].done < records * (1 - TENTH):
        for worker in workers:
            if worker.poll() is not None:
                raise RuntimeError(f"a worker ended with {worker.returncode}; see its log in {LOGS}")
        if (count := await done()) > records * TENTH:
            samples.append(Sample(time.monotonic(), count, await asyncio.to_thread(look)))
        await asyncio.sleep(EVERY)
    return samples


async def watched(
    settings: Settings, stage: StageName, records: int, *options: str, look: Callable[[], Any] = time.monotonic
) -> list[Sample]:
    """Runs `stream worker` on its topic, and samples the number of its output records."""
    command = [sys.executable, "-m", "stream", "worker", stage, *options]
    variables = {"STREAM_TOPIC": settings.topic, "STREAM_WEB_PORT": "0"}
    with started(command, LOGS / f"{settings.topic}.log", [variables]) as workers:
        async with written(settings, stage) as done:
            return await sampled(workers, records, done, look)


@asynccontextmanager
async def written(settings: Settings, stage: StageName) -> AsyncIterator[Callable[[], Awaitable[int]]]:
    """Gives a function that returns the number of a stage's output records."""
    topic = topics.target(settings, stage)
    assert topic, "the stage publishes nothing"
    partitions = [TopicPartition(topic, n) for n in range(settings.partitions)]
    async with clients.offsets(settings) as client:

        async def done() -> int:
            return sum((await client.end_offsets(partitions)).values())

        yield done


def rate(samples: list[Sample]) -> float:
    """Records per second, from the end of one batch to the end of another."""
    ends = [after for before, after in pairwise(samples) if after.done > before.done]
    return (ends[-1].done - ends[0].done) / (ends[-1].at - ends[0].at)
