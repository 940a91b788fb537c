"""Measures which share of vLLM's own rate the embed stage reaches, with texts of the same kind in one run.

    STREAM_EMBED_URL=http://localhost:8000 python bench/embed.py --characters 511

"Alone": plain requests of 256 texts, 2 or 4 in flight. "The stage": decodes records, embeds and checks them, and makes
the records for Kafka, but without Kafka. With `--kafka`, a worker also does this from topic to topic. The topics are
not deleted: use a disposable broker. The measurements alternate, so that a GPU that slows down affects all of them.
"""

import asyncio
import string
import sys
import time
from collections.abc import Iterator
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import orjson
import typer
from data import own_topics, publish
from matplotlib.axes import Axes
from measure import device, nvidia_smi, save
from workers import rate, watched

from stream import config
from stream.benchmark.stage import rate_of_stage
from stream.config import Settings
from stream.models.embeddings import EmbeddingClient
from stream.records import Chunk, Record
from stream.stages.embed import embed

BATCH = 256
IN_FLIGHT = (2, 4)  # requests to vLLM alone; the better result counts
LETTERS = list(string.ascii_lowercase + "     ")
STAGE, KAFKA = "the stage", "from Kafka to Kafka"


def chunks(characters: int) -> Iterator[Chunk]:
    """Chunks of random letters, all different: vLLM caches the prefixes of texts."""
    rng = np.random.default_rng(0)
    for n in count():
        text = "".join(rng.choice(LETTERS, characters))
        yield {"chunk_id": f"chunk-{n}", "doc_id": "document", "text": text, "version": 1}


async def alone(settings: Settings, batches: Iterator[list[Chunk]], in_flight: int, seconds: float) -> dict[str, float]:
    """Texts per second of plain requests, and the mean number of tokens per text."""
    asked = {"encoding_format": "base64", "embed_dtype": "float32", "endianness": "little"}
    texts = tokens = 0
    headers = {"Content-Type": "application/json"}
    async with httpx.AsyncClient(
        base_url=settings.embed_urls[0], headers=headers, timeout=600, trust_env=False
    ) as client:
        started = time.perf_counter()

        async def one_after_another() -> None:
            nonlocal texts, tokens
            while time.perf_counter() - started < seconds:
                body = {"model": settings.embed_model, "input": [chunk["text"] for chunk in next(batches)], **asked}
                answer = await client.post("/v1/embeddings", content=orjson.dumps(body))
                texts += BATCH
                tokens += answer.raise_for_status().json()["usage"]["prompt_tokens"]

        await asyncio.gather(*(one_after_another() for _ in range(in_flight)))
        took = time.perf_counter() - started
    return {"rate": texts / took, "tokens_a_text": tokens / texts}


async def measured(settings: Settings, characters: int, seconds: float, rounds: int, kafka: bool) -> dict[str, Any]:
    """Runs all measurements in turn, `rounds` times."""
    fresh = chunks(characters)
    batches = iter(lambda: list(islice(fresh, BATCH)), [])
    records = ([_record(chunk) for chunk in batch] for batch in batches)
    runs: dict[str, list[float]] = {}

    def note(name: str, found: float) -> None:
        runs.setdefault(name, []).append(found)
        print(f"{characters} letters, {name}: {60 * found:,.0f} texts a minute", file=sys.stderr)

    warm = await alone(settings, batches, IN_FLIGHT[0], seconds / 4)
    async with EmbeddingClient(settings) as client:
        process = partial(embed, client=client, request_tokens=settings.embed_request_tokens)
        for _ in range(rounds):
            for in_flight in IN_FLIGHT:
                note(f"alone, {in_flight} in flight", (await alone(settings, batches, in_flight, seconds))["rate"])
            note(STAGE, await rate_of_stage(process, "chunk", records, settings, seconds))
            if kafka:
                waiting = int(runs[STAGE][-1] * seconds)
                note(KAFKA, await through_kafka(settings, list(islice(fresh, waiting))))
    means = {name: float(np.mean(found)) for name, found in runs.items()}
    best = max(mean for name, mean in means.items() if name.startswith("alone"))
    return {
        "characters": characters,
        "tokens": warm["tokens_a_text"],
        "texts_a_minute": {name: 60 * mean for name, mean in means.items()},
        "of_the_best_alone": {name: mean / best for name, mean in means.items()},
        "runs": runs,
    }


async def through_kafka(settings: Settings, waiting: list[Chunk]) -> float:
    """Chunks per second of a worker whose topic already holds them."""
    settings = await own_topics(settings)
    await publish(settings, "embed", waiting)
    return rate(await watched(settings, "embed", len(waiting)))


def _record(chunk: Chunk) -> Record:
    return Record("chunks", 0, 0, chunk["chunk_id"].encode(), orjson.dumps(chunk), 0)


def draw(axes: Axes, results: list[dict[str, Any]]) -> None:
    """Draws texts per minute by length."""
    width = 1 / (len(results) + 1)
    for k, result in enumerate(results):
        names, rates = zip(*result["texts_a_minute"].items(), strict=True)
        bars = axes.bar(np.arange(len(names)) + k * width, rates, width, label=f"{result['tokens']:.0f} tokens")
        axes.bar_label(bars, [f"{share:.1%}" for share in result["of_the_best_alone"].values()])
        axes.set_xticks(np.arange(len(names)) + width / 2, names)
    axes.set(ylabel="texts a minute (above: of the best alone)")
    axes.legend()


async def bench(lengths: list[int], seconds: float, rounds: int, kafka: bool) -> list[dict[str, Any]]:
    """Measures the lengths one after another."""
    settings = config.load()
    return [await measured(settings, length, seconds, rounds, kafka) for length in lengths]


def main(
    characters: Annotated[list[int], typer.Option(help="Letters per text; repeatable.")],
    seconds: Annotated[float, typer.Option(help="Seconds per run.")] = 30,
    rounds: Annotated[int, typer.Option(help="Number of times that everything is run.")] = 2,
    kafka: Annotated[bool, typer.Option("--kafka", help="Also measure a worker between two topics.")] = False,
    out: Annotated[Path, typer.Option(help="Output path; writes .json and .svg.")] = Path("docs/figures/embed"),
) -> None:
    """Compare the embed stage with vLLM alone."""
    machine = {"device": device(), "gpus": nvidia_smi("name")}
    results = asyncio.run(bench(characters, seconds, rounds, kafka))
    save(out, {**machine, "results": results}, lambda axes: draw(axes, results))


if __name__ == "__main__":
    typer.run(main)
