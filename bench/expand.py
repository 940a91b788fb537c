"""How many chunks a second do expand workers take from Kafka and give back, with one GPU and with more?

For each list of GPUs: fills a topic of its own, runs `stream worker expand --gpus all` on it, and counts what comes out
between the first tenth and the last, while nvidia-smi says how much of the time each GPU works. A GPU that is named
twice gets two workers.

    STREAM_KAFKA_SERVERS=localhost:9092 python bench/expand.py --gpus 0 --gpus 0,1

Without STREAM_SPLADE_MODEL the model has the real one's shape and random weights. The topics stay: use a broker that
can be thrown away.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import orjson
import typer
from aiokafka import AIOKafkaConsumer, TopicPartition
from data import publish
from matplotlib.axes import Axes
from measure import device, save

from stream import config, topics
from stream.bench.splade import embedded, random_model, whole_words
from stream.config import Settings

DIFFERENT = 512  # texts and vectors
TENTH = 0.1  # at the beginning and at the end that does not count: workers start, workers run out of records
EVERY = 0.25  # seconds between two looks
LOGS = Path(".local/logs")


def chunks(settings: Settings, records: int, tokens: int) -> Iterator[dict[str, Any]]:
    """Chunks of so many tokens as expand gets them."""
    words, rng = whole_words(settings), np.random.default_rng(0)
    different = [embedded(n, " ".join(rng.choice(words, tokens - 2))) for n in range(DIFFERENT)]
    for n in range(records):
        yield {**different[n % DIFFERENT], "chunk_id": f"chunk-{n}"}


async def watched(settings: Settings, gpus: str, records: int, log: Path) -> dict[str, Any]:
    """Workers on these GPUs: chunks a second, and percent of the time that each GPU works."""
    with log.open("wb") as file:
        workers = subprocess.Popen(
            [sys.executable, "-m", "stream", "worker", "expand", "--gpus", "all"],
            env=os.environ | {"CUDA_VISIBLE_DEVICES": gpus, "STREAM_WEB_PORT": "0"},
            stderr=file,
        )
    samples: list[tuple[float, int]] = []
    busy: dict[str, list[float]] = {gpu: [] for gpu in sorted(set(gpus.split(",")))}
    target = [TopicPartition(topics.source(settings, "index"), n) for n in range(settings.partitions)]
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka_servers)
    await consumer.start()
    try:
        while not samples or samples[-1][1] < records * (1 - TENTH):
            if workers.poll() is not None:
                raise RuntimeError(f"the workers ended with {workers.returncode}; see {log}")
            done = sum((await consumer.end_offsets(target)).values())
            if done > records * TENTH:
                samples.append((time.monotonic(), done))
                for gpu, percents in busy.items():
                    percents.append(await asyncio.to_thread(utilisation, gpu))
            await asyncio.sleep(EVERY)
    finally:
        await consumer.stop()
        workers.terminate()
        code = workers.wait(120)
    (began, first), (ended, last) = samples[0], samples[-1]
    return {
        "gpus": gpus,
        "chunks_a_second": (last - first) / (ended - began),
        "seconds": ended - began,
        "busy_percent": {gpu: float(np.mean(percents)) for gpu, percents in busy.items()},
        "exit_code": code,
    }


def utilisation(gpu: str) -> float:
    """Percent of the last moments in which the GPU did something, as nvidia-smi says."""
    return float(nvidia_smi("utilization.gpu", f"--id={gpu}"))


def names() -> list[str]:
    """The GPUs of this machine."""
    return nvidia_smi("name").splitlines()


def nvidia_smi(query: str, *options: str) -> str:
    """A line for each GPU."""
    asked = ["nvidia-smi", *options, f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    return subprocess.run(asked, capture_output=True, check=True, text=True).stdout


async def bench(lists: list[str], records: int, tokens: int) -> list[dict[str, Any]]:
    """The lists of GPUs one after another."""
    runs = []
    for gpus in lists:
        os.environ["STREAM_TOPIC"] = f"bench-{uuid.uuid4().hex[:8]}"
        settings = config.load()
        await topics.create(settings)
        await publish(settings, "expand", chunks(settings, records, tokens))
        print(f"{gpus}: {records:,} chunks of {tokens} tokens wait", file=sys.stderr)
        runs.append(await watched(settings, gpus, records, LOGS / f"{settings.topic}.log"))
        print(orjson.dumps(runs[-1]).decode(), file=sys.stderr)
    return runs


def draw(axes: Axes, runs: list[dict[str, Any]]) -> None:
    """Chunks a second by list of GPUs."""
    bars = axes.bar([f"GPU {run['gpus']}" for run in runs], [run["chunks_a_second"] for run in runs])
    axes.bar_label(bars, [", ".join(f"{busy:.0f} %" for busy in run["busy_percent"].values()) for run in runs])
    axes.set(ylabel="chunks a second through Kafka (above: GPU busy)")


def main(
    gpus: Annotated[list[str], typer.Option(help="Numbers of GPUs, with commas; one worker for each.")],
    records: Annotated[int, typer.Option(help="Chunks that wait for the workers.")] = 60_000,
    tokens: Annotated[int, typer.Option(help="Tokens of a chunk.")] = 512,
    out: Annotated[Path, typer.Option(help="Where the results go, .json and .svg.")] = Path("docs/figures/expand"),
) -> None:
    """Expand chunks from Kafka to Kafka on some GPUs."""
    with tempfile.TemporaryDirectory() as folder:
        if "STREAM_SPLADE_MODEL" not in os.environ:
            os.environ["STREAM_SPLADE_MODEL"] = str(random_model(Path(folder)))
        LOGS.mkdir(parents=True, exist_ok=True)
        runs = asyncio.run(bench(gpus, records, tokens))
    machine = {"device": device(), "gpus": names()}
    save(out, {**machine, "records": records, "tokens": tokens, "runs": runs}, lambda axes: draw(axes, runs))


if __name__ == "__main__":
    typer.run(main)
