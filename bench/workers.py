"""Runs workers between two topics and samples the number of their output records."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from stream.config import Settings, StageName
from stream.kafka import topics

EVERY = 0.1  # seconds between two samples
TENTH = 0.1  # ignored at the beginning (workers start) and at the end (workers run out of records)
LOGS = Path(".local/logs")


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample: monotonic seconds, number of output records, and the result of `look`."""

    at: float
    done: int
    seen: Any


async def watched(
    settings: Settings, stage: StageName, records: int, *options: str, look: Callable[[], Any] = time.monotonic
) -> list[Sample]:
    """Runs `stream worker` on its topic. Returns the samples between the first tenth of the records and the last."""
    topic = topics.target(settings, stage)
    assert topic, "the stage publishes nothing"
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{settings.topic}.log"
    variables = {"STREAM_TOPIC": settings.topic, "STREAM_WEB_PORT": "0"}
    with log.open("wb") as file:
        command = [sys.executable, "-m", "stream", "worker", stage, *options]
        worker = subprocess.Popen(command, env=os.environ | variables, stderr=file)
    samples: list[Sample] = []
    partitions = [TopicPartition(topic, n) for n in range(settings.partitions)]
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka_servers)
    await consumer.start()
    try:
        while not samples or samples[-1].done < records * (1 - TENTH):
            if worker.poll() is not None:
                raise RuntimeError(f"the worker ended with {worker.returncode}; see {log}")
            done = sum((await consumer.end_offsets(partitions)).values())
            if done > records * TENTH:
                samples.append(Sample(time.monotonic(), done, await asyncio.to_thread(look)))
            await asyncio.sleep(EVERY)
    finally:
        await consumer.stop()
        worker.terminate()
        worker.wait(120)
    return samples


def rate(samples: list[Sample]) -> float:
    """Records per second, from the end of one batch to the end of another."""
    ends = [after for before, after in pairwise(samples) if after.done > before.done]
    return (ends[-1].done - ends[0].done) / (ends[-1].at - ends[0].at)
