"""Measures how many chunks per second expand workers process from Kafka to Kafka, with one GPU and with more.

For each list of GPUs: fills a new topic, runs `stream worker expand --gpus all` on it, and counts the output records
between the first tenth and the last. Meanwhile it samples each GPU's utilisation with nvidia-smi. A GPU that is named
twice gets two workers.

    STREAM_KAFKA_SERVERS=localhost:9092 python bench/expand.py --gpus 0 --gpus 0,1

Without STREAM_SPLADE_MODEL the model has the real one's shape and random weights. The topics are not deleted: use a
disposable broker.
"""

import asyncio
import os
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import orjson
import typer
from data import own_topics, publish
from matplotlib.axes import Axes
from measure import device, nvidia_smi, save
from workers import rate, watched

from stream import config
from stream.benchmark.splade import embedded, random_model, whole_words
from stream.config import Settings

DIFFERENT = 512  # distinct texts and vectors


def chunks(settings: Settings, records: int, tokens: int) -> Iterator[dict[str, Any]]:
    """Chunks of `tokens` tokens, as expand receives them."""
    words, rng = whole_words(settings), np.random.default_rng(0)
    different = [embedded(n, " ".join(rng.choice(words, tokens - 2))) for n in range(DIFFERENT)]
    for n in range(records):
        yield {**different[n % DIFFERENT], "chunk_id": f"chunk-{n}"}


async def on_gpus(settings: Settings, gpus: str, records: int) -> dict[str, Any]:
    """Runs workers on these GPUs. Returns chunks per second and the utilisation of each GPU in percent."""
    each = sorted(set(gpus.split(",")))
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus
    samples = await watched(settings, "expand", records, "--gpus", "all", look=partial(utilisation, each))
    busy = np.mean([sample.seen for sample in samples], axis=0)
    return {
        "gpus": gpus,
        "chunks_a_second": rate(samples),
        "seconds": samples[-1].at - samples[0].at,
        "busy_percent": dict(zip(each, busy.tolist(), strict=True)),
    }


def utilisation(gpus: list[str]) -> list[float]:
    """The current utilisation of each GPU in percent, from nvidia-smi."""
    return [float(nvidia_smi("utilization.gpu", f"--id={gpu}")[0]) for gpu in gpus]


async def bench(lists: list[str], records: int, tokens: int) -> list[dict[str, Any]]:
    """Measures the lists of GPUs one after another."""
    runs = []
    for gpus in lists:
        settings = await own_topics(config.load())
        await publish(settings, "expand", chunks(settings, records, tokens))
        print(f"{gpus}: published {records:,} chunks of {tokens} tokens", file=sys.stderr)
        runs.append(await on_gpus(settings, gpus, records))
        print(orjson.dumps(runs[-1]).decode(), file=sys.stderr)
    return runs


def draw(axes: Axes, runs: list[dict[str, Any]]) -> None:
    """Draws chunks per second by list of GPUs."""
    bars = axes.bar([f"GPU {run['gpus']}" for run in runs], [run["chunks_a_second"] for run in runs])
    axes.bar_label(bars, [", ".join(f"{busy:.0f} %" for busy in run["busy_percent"].values()) for run in runs])
    axes.set(ylabel="chunks a second through Kafka (above: GPU busy)")


def main(
    gpus: Annotated[list[str], typer.Option(help="GPU numbers, separated by commas; one worker for each. Repeatable.")],
    records: Annotated[int, typer.Option(help="Chunks in the topic before the workers start.")] = 60_000,
    tokens: Annotated[int, typer.Option(help="Tokens per chunk.")] = 512,
    out: Annotated[Path, typer.Option(help="Output path; writes .json and .svg.")] = Path("docs/figures/expand"),
) -> None:
    """Measure expand workers from Kafka to Kafka on lists of GPUs."""
    with tempfile.TemporaryDirectory() as folder:
        if "STREAM_SPLADE_MODEL" not in os.environ:
            os.environ["STREAM_SPLADE_MODEL"] = str(random_model(Path(folder)))
        runs = asyncio.run(bench(gpus, records, tokens))
    machine = {"device": device(), "gpus": nvidia_smi("name")}
    save(out, {**machine, "records": records, "tokens": tokens, "runs": runs}, lambda axes: draw(axes, runs))


if __name__ == "__main__":
    typer.run(main)
