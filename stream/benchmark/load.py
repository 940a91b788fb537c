"""The whole flow under load: chunks a second, latency from publishing to searchable, and memory.

Publishes to its own topics, runs one worker of each stage, and reads their progress at /metrics.
"""

import asyncio
import math
import os
import socket
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import httpx
import orjson
import torch
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from stream import children, corpus
from stream.config import PLAIN, STAGES, Settings, StageName
from stream.errors import ConfigurationError
from stream.kafka import clients, topics
from stream.records import Chunk
from stream.stores import open_stores

EVERY = 0.5  # seconds between two readings
QUANTILES = (0.5, 0.95, 0.99)
MIB = 2**20

Progress = Callable[[StageName, int], None]  # a stage and the number of its finished records


@dataclass(frozen=True, slots=True)
class Look:
    """The workers' metrics, read `seconds` after publishing began."""

    seconds: float
    done: dict[StageName, int]
    memory_mib: dict[StageName, float]


@dataclass(frozen=True, slots=True)
class Result:
    """One run: `chunks_a_second` of each stage without its first and its last tenth, latencies in seconds."""

    device: str
    chunks: int
    published_a_second: float | None  # as requested
    seconds: float
    chunks_a_second: dict[str, float]
    latency_seconds: dict[str, float]
    peak_memory_mib: dict[str, float]
    looks: list[Look]


async def run(settings: Settings, chunks: int, rate: float | None, progress: Progress = lambda *_: None) -> Result:
    """Publishes `chunks` chunks, all at once or `rate` a second, and returns when both stores have them.

    Raises `ConfigurationError` if Neo4j already holds chunks, and `Outage` if a worker ends.
    """
    name = f"bench-{uuid.uuid4().hex[:8]}"
    settings = settings.model_copy(update={"topic": name, "opensearch_alias": name} | PLAIN)
    async with open_stores(settings) as stores:
        if held := await stores.neo4j.count():
            raise ConfigurationError(
                f"Neo4j holds {held:,} chunks, the benchmark needs an empty one: set STREAM_NEO4J_URI"
            )
    await topics.create(settings)
    async with _workers(settings) as read:
        looks: list[Look] = []
        begin = time.monotonic()
        publishing = asyncio.create_task(_publish(settings, chunks, rate))
        try:
            while not looks or min(looks[-1].done.values()) < chunks:
                if publishing.done():
                    publishing.result()  # raises if publishing failed
                samples = await read()
                looks.append(_look(time.monotonic() - begin, samples))
                for stage, done in looks[-1].done.items():
                    progress(stage, done)
                await asyncio.sleep(EVERY)
        finally:
            publishing.cancel()
    return Result(
        device=_device(),
        chunks=chunks,
        published_a_second=rate,
        seconds=looks[-1].seconds,
        chunks_a_second={stage: _rate(looks, stage, chunks) for stage in STAGES},
        latency_seconds={
            f"{q:.0%}": min(quantile(_buckets(samples["index"]), q), looks[-1].seconds) for q in QUANTILES
        },
        peak_memory_mib={stage: max(look.memory_mib[stage] for look in looks) for stage in STAGES},
        looks=looks,
    )


async def _publish(settings: Settings, chunks: int, rate: float | None) -> None:
    started = time.monotonic()
    async with clients.producer(settings) as producer:
        for n, chunk in enumerate(_chunks(chunks)):
            if rate and (ahead := n / rate - (time.monotonic() - started)) > 0:
                await asyncio.sleep(ahead)
            await producer.send(settings.topic, orjson.dumps(chunk), key=chunk["chunk_id"].encode())


def _chunks(count: int) -> Iterator[Chunk]:
    """The docstrings of the standard library, repeated under new IDs; a number makes each text unique."""
    for n, chunk in enumerate(islice(cycle(list(corpus.chunks())), count)):
        yield {**chunk, "chunk_id": f"{n}", "text": f"{n}: {chunk['text']}"}


Samples = Mapping[StageName, list[Sample]]


@asynccontextmanager
async def _workers(settings: Settings) -> AsyncIterator[Callable[[], Awaitable[Samples]]]:
    """One worker of each stage; yields a function that reads the metrics of all."""
    own = {name: getattr(settings, name) for name in ("topic", "opensearch_alias")}
    own |= PLAIN | {"web_host": "127.0.0.1", "instance": f"{settings.instance}-bench-{os.getpid()}"}
    ports = dict(zip(STAGES, _free_ports(len(STAGES)), strict=True))
    async with (
        children.workers({stage: own | {"web_port": str(port)} for stage, port in ports.items()}) as check,
        httpx.AsyncClient(trust_env=False) as http,
    ):

        async def get(stage: StageName, path: str) -> str:
            """The response of a stage's worker; retries until it is successful."""
            while True:
                check()
                with suppress(httpx.HTTPError):
                    answer = await http.get(f"http://127.0.0.1:{ports[stage]}{path}", timeout=10)
                    return answer.raise_for_status().text
                await asyncio.sleep(EVERY)

        async def read() -> Samples:
            pages = await asyncio.gather(*(get(stage, "/metrics") for stage in STAGES))
            return {stage: _samples(page) for stage, page in zip(STAGES, pages, strict=True)}

        await asyncio.gather(*(get(stage, "/readyz") for stage in STAGES))
        yield read


def _samples(page: str) -> list[Sample]:
    return [sample for family in text_string_to_metric_families(page) for sample in family.samples]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _device() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    return ", ".join([f"{os.cpu_count()} cores", f"{memory:.0f} GiB", *found])


# Evaluation


def _look(seconds: float, samples: Samples) -> Look:
    def total(stage: StageName, name: str) -> float:
        return sum(sample.value for sample in samples[stage] if sample.name == name)

    return Look(
        seconds,
        {stage: int(total(stage, "stream_records_total")) for stage in STAGES},
        {stage: total(stage, "process_resident_memory_bytes") / MIB for stage in STAGES},
    )


def _rate(looks: list[Look], stage: StageName, chunks: int) -> float:
    """Chunks a second without the first and the last tenth, in which workers start and run out of work."""
    first = next(look for look in looks if look.done[stage] >= chunks * 0.1)
    last = next(look for look in looks if look.done[stage] >= chunks * 0.9)
    return (last.done[stage] - first.done[stage]) / (last.seconds - first.seconds) if last is not first else math.nan


def _buckets(samples: list[Sample]) -> list[tuple[float, float]]:
    name = "stream_end_to_end_seconds_bucket"
    return sorted((float(sample.labels["le"]), sample.value) for sample in samples if sample.name == name)


def quantile(buckets: list[tuple[float, float]], q: float) -> float:
    """Quantile q of a cumulative histogram of (upper bound, count) in order, interpolated as Prometheus does."""
    rank = q * buckets[-1][1]
    lower, below = 0.0, 0.0
    for upper, count in buckets:
        if count >= rank and count > below:
            return lower if upper == math.inf else lower + (upper - lower) * (rank - below) / (count - below)
        lower, below = upper, count
    return math.nan


def draw(result: Result, path: Path) -> None:
    """Plots each stage's finished chunks and memory over time."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - an optional dependency

    figure = Figure(figsize=(8, 6), layout="constrained")
    done, memory = figure.subplots(2, sharex=True)
    seconds = [look.seconds for look in result.looks]
    for stage in STAGES:
        done.plot(seconds, [look.done[stage] for look in result.looks], label=stage)
        memory.plot(seconds, [look.memory_mib[stage] for look in result.looks], label=stage)
    done.set(ylabel="chunks done")
    memory.set(xlabel="seconds since the first chunk was published", ylabel="memory, MiB")
    memory.set_ylim(bottom=0)
    done.legend()
    figure.savefig(path)
