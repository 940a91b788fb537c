"""Measures whether searches notice a reindex, and checks that a killed reindex can be resumed.

Fills a flow with chunks. A writer then publishes new chunks, updates and tombstones, the workers index them, and a
searcher queries both stores all the time. Meanwhile the flow is reindexed twice: from `chunks.expanded`, followed by a
rollback, and from `chunks` for another model in another flow. Each time `stream reindex start` is killed five times
with SIGKILL. At the end `verify` checks every generation that may be searched.

    STREAM_ENV_FILE=.local/stream.env python bench/reindex.py

The servers must be new and have no workers. The topics and the stored chunks are not deleted: use disposable servers.
"""

import asyncio
import os
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import orjson
import typer
from data import chunk, publish
from matplotlib.axes import Axes
from measure import device, save

from stream import config
from stream.config import STAGES, Settings
from stream.errors import ConfigurationError
from stream.kafka import clients, topics
from stream.kafka.lag import committed
from stream.models.embeddings import EmbeddingClient
from stream.operate import reindex
from stream.operate.status import caught_up
from stream.records import Chunk
from stream.search import Searcher
from stream.stores import Stores, open_stores

KILLS = 5
QUERY = "word1 word2 word3"
HITS = 100  # per search
DELETED = 10  # the writer deletes one of this many chunks that it published
OWN = ("topic", "opensearch_alias", "neo4j_index", "flow", "embed_revision")
WORDS = 12  # per text: short, so that the models on a small CPU are not the bottleneck
MODES = ("lexical", "dense")
FIRST_NEW = 1_000_000  # number of the writer's first chunk: above those that filled the flow
PAUSE = 0.2  # seconds between two searches
LOGS = Path(".local/logs")

Counts = tuple[int, ...]  # chunks in Neo4j and in OpenSearch


def short(n: int, version: int = 1) -> Chunk:
    """A chunk with a short text."""
    whole = chunk(n, version)
    return {**whole, "text": " ".join(whole["text"].split()[:WORDS])}


@dataclass(frozen=True, slots=True)
class Look:
    """One sample: seconds since the watch began, seconds per search, and the number of chunks that can be found."""

    at: float
    took: dict[str, float]
    chunks: Counts


@dataclass
class Watch:
    """The samples and the failures of a searcher."""

    begin: float = field(default_factory=time.monotonic)
    looks: list[Look] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def now(self) -> float:
        """Seconds since the watch began."""
        return time.monotonic() - self.begin

    @asynccontextmanager
    async def phase(self, results: dict[str, Any], name: str) -> AsyncIterator[dict[str, Any]]:
        """Adds a summary of the samples in this phase to `results`. A fall is the decrease between two samples."""
        since, first, failed = self.now, len(self.looks), len(self.failures)
        results[name] = result = dict[str, Any]()
        yield result
        looks = self.looks[first:]
        seen = np.array([look.chunks for look in looks])
        result |= {
            "since": since,
            "until": self.now,
            "searches": len(looks) * len(MODES),
            "failed": self.failures[failed:],
            "chunks_at_first": seen[0].tolist(),
            "fewest_chunks": seen.min(axis=0).tolist(),
            "largest_fall": max(0, int(-np.diff(seen, axis=0).min(initial=0))),
        }
        for mode in MODES:
            took = 1000 * np.array([look.took[mode] for look in looks])
            result[f"{mode}_ms"] = {"median": float(np.median(took)), "p99": float(np.percentile(took, 99))}
        print(f"{name}: {orjson.dumps(result).decode()}", file=sys.stderr)


@asynccontextmanager
async def searched(settings: Settings) -> AsyncIterator[Watch]:
    """Searches both stores in the background."""
    watch = Watch()

    async def look(stores: Stores, searcher: Searcher) -> Look:
        at, took = watch.now, {}
        for mode in MODES:
            started = time.monotonic()
            if len(hits := await searcher.search(QUERY, mode, HITS)) != HITS:
                watch.failures.append(f"{mode}: {len(hits)} hits instead of {HITS}")
            took[mode] = time.monotonic() - started
        # Not the store's count(): it refreshes the index, and only what a search can find now must count.
        body = {"query": {"bool": {"must_not": {"term": {"deleted": True}}}}}
        counted = await stores.opensearch._call("POST", f"/{settings.opensearch_alias}/_count", body=body)
        return Look(at, took, (await stores.neo4j.count(), counted["count"]))

    async def search(stores: Stores, searcher: Searcher) -> None:
        while True:
            try:
                watch.looks.append(await look(stores, searcher))
            except Exception as error:  # a searcher notices every error
                watch.failures.append(repr(error))
            await asyncio.sleep(PAUSE)

    async with open_stores(settings) as stores, EmbeddingClient(settings) as embedder:
        task = asyncio.create_task(search(stores, Searcher(settings, stores, embedder)))
        try:
            yield watch
        finally:
            task.cancel()


@asynccontextmanager
async def written(settings: Settings, chunks: int, rate: float) -> AsyncIterator[None]:
    """Publishes `rate` records per second in the background: new chunks, updates, tombstones of new chunks."""

    async def write() -> None:
        async with clients.producer(settings) as producer:
            for n in count():
                for one in (short(FIRST_NEW + n), short(n % chunks, 2 + n // chunks)):
                    await producer.send(settings.topic, orjson.dumps(one), key=one["chunk_id"].encode())
                if n % DELETED == DELETED - 1:
                    gone = chunk(FIRST_NEW + n - DELETED // 2)["chunk_id"].encode()
                    await producer.send(settings.topic, None, key=gone, headers=[("version", b"2")])
                await asyncio.sleep(2 / rate)

    task = asyncio.create_task(write())
    try:
        yield
    finally:
        task.cancel()


@contextmanager
def workers(settings: Settings) -> Iterator[None]:
    """Runs one worker of each stage."""
    running = []
    for stage in STAGES:
        with (LOGS / f"{settings.topic}{settings.flow}-{stage}.log").open("wb") as log:
            running.append(subprocess.Popen(command("worker", stage), env=environment(settings), stderr=log))
    try:
        yield
    finally:
        for worker in running:
            worker.terminate()
        for worker in running:
            worker.wait(120)


def command(*arguments: str) -> list[str]:
    """The command line of `stream` with these arguments."""
    return [sys.executable, "-m", "stream", *arguments]


def environment(settings: Settings) -> dict[str, str]:
    """The environment of a process with these settings."""
    own = {name: str(getattr(settings, name)) for name in OWN} | {"web_port": "0"}
    return os.environ | {f"STREAM_{name.upper()}": value for name, value in own.items()}


async def run(settings: Settings, *arguments: str) -> bytes:
    """Runs a command that must succeed. Returns its standard output."""
    process = await asyncio.create_subprocess_exec(
        *command(*arguments), env=environment(settings), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    printed, said = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"stream {' '.join(arguments)} ended with {process.returncode}: {(printed + said).decode()}")
    return printed


async def killed(settings: Settings, generation: int, chunks: int) -> list[int]:
    """Kills `stream reindex start` `KILLS` times. Returns the number of records of the generation at each kill."""
    kills: list[int] = []
    while len(kills) < KILLS:
        with (LOGS / f"{settings.topic}-reindex.log").open("wb") as log:
            process = subprocess.Popen(command("reindex", "start"), env=environment(settings), stdout=log, stderr=log)
        while (done := await progress(settings, generation)) <= chunks * len(kills) / KILLS:
            if process.poll() is not None:
                raise RuntimeError(f"stream reindex start ended with {process.returncode}; see {log.name}")
            await asyncio.sleep(PAUSE)
        process.kill()
        process.wait()
        kills.append(done)
    return kills


async def progress(settings: Settings, generation: int) -> int:
    """The number of records that the generation has committed."""
    async with clients.admin(settings) as admin:
        return sum(
            (await committed(admin, topics.group(reindex.for_generation(settings, generation), "index"))).values()
        )


async def bench(settings: Settings, chunks: int, rate: float, quiet: float) -> dict[str, Any]:
    """Runs all phases in order."""
    other = settings.model_copy(update={"flow": "other", "embed_revision": "another"})
    phases: dict[str, Any] = {}
    verified: dict[str, Any] = {}

    async def verify_now(name: str, settings: Settings) -> None:
        verified[name] = orjson.loads(await run(settings, "verify", "--wait", "120", "--json"))
        print(f"{name}: {verified[name]}", file=sys.stderr)

    LOGS.mkdir(parents=True, exist_ok=True)
    await topics.create(settings)
    async with open_stores(settings) as stores:
        if await stores.neo4j.count():
            raise ConfigurationError("Neo4j already holds chunks; use an empty Neo4j")
    await publish(settings, "embed", (short(n) for n in range(chunks)))
    with workers(settings):
        await caught_up(settings)
        async with written(settings, chunks, rate), searched(settings) as watch:
            async with watch.phase(phases, "no reindex"):
                await asyncio.sleep(quiet)
            async with watch.phase(phases, "from chunks.expanded") as phase:
                phase["killed_at"] = await killed(settings, 2, chunks)
                await run(settings, "reindex", "start")
            await verify_now("from chunks.expanded", settings)
            async with watch.phase(phases, "rollback"):
                await run(settings, "reindex", "rollback")
            await verify_now("rollback", settings)
            async with watch.phase(phases, "from chunks, for another model") as phase:
                phase["killed_at"] = await killed(other, 3, chunks)
                await run(other, "reindex", "start")
        with workers(other):
            await caught_up(settings)
            await caught_up(other)
            await verify_now("the old model", settings)
            await verify_now("the new model", other)
    looks = [[round(look.at, 1), *look.chunks] for look in watch.looks]
    return {
        **{"device": device(), "chunks": chunks, "records_a_second": rate},
        **{"phases": phases, "verified": verified, "looks": looks},
    }


def draw(axes: Axes, results: dict[str, Any]) -> None:
    """Draws the number of chunks that searches could find."""
    at, *stores = zip(*results["looks"], strict=True)
    for name, chunks in zip(("Neo4j", "OpenSearch"), stores, strict=True):
        axes.plot(at, chunks, label=name, linewidth=1)
    for n, (name, phase) in enumerate(results["phases"].items()):
        axes.axvspan(phase["since"], phase["until"], alpha=0.15, color=f"C{n + 2}", label=name)
    axes.set(xlabel="seconds", ylabel="chunks that a search can find")
    axes.legend()


def main(
    chunks: Annotated[int, typer.Option(help="Chunks that are live before the reindex.")] = 20_000,
    rate: Annotated[float, typer.Option(help="Records per second that are written during the reindex.")] = 20,
    quiet: Annotated[float, typer.Option(help="Seconds of searches before the first reindex.")] = 60,
    out: Annotated[Path, typer.Option(help="Output path; writes .json and .svg.")] = Path("docs/figures/reindex"),
) -> None:
    """Reindex both ways under load, with kills."""
    name = f"bench-{uuid.uuid4().hex[:8]}"
    results = asyncio.run(bench(config.load(topic=name, opensearch_alias=name, neo4j_index=name), chunks, rate, quiet))
    save(out, results, lambda axes: draw(axes, results))


if __name__ == "__main__":
    typer.run(main)
