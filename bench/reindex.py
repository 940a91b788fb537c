"""Does anybody notice a reindex, and does it survive being killed?

Fills a flow with chunks. Then, while a writer publishes new chunks, updates and tombstones, the workers index them and
a searcher asks both stores again and again, it reindexes twice, killing `stream reindex start` with SIGKILL five times
each: from `chunks.expanded`, with a rollback behind it, and from `chunks` for another model in a flow of its own. At
the end `verify` looks at every generation that somebody may search.

    STREAM_ENV_FILE=.local/stream.env python bench/reindex.py

The servers must be new, with no workers. What was published and stored stays: use some that can be thrown away.
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
HITS = 100  # that a search asks for
DELETED = 10  # one of so many that the writer had published
OWN = ("topic", "opensearch_alias", "neo4j_index", "flow", "embed_revision")
WORDS = 12  # of a text: a reindex is to have more to do than a small CPU's models
MODES = ("lexical", "dense")
FIRST_NEW = 1_000_000  # the writer's first chunk: beyond those that the flow was filled with
PAUSE = 0.2  # seconds between two searches
LOGS = Path(".local/logs")

Shown = tuple[int, ...]  # in Neo4j and in OpenSearch


def short(n: int, version: int = 1) -> Chunk:
    """A chunk of few words."""
    whole = chunk(n, version)
    return {**whole, "text": " ".join(whole["text"].split()[:WORDS])}


@dataclass(frozen=True, slots=True)
class Look:
    """Two searches: when, in seconds since the watch began, how long each took, and how many chunks they could find."""

    at: float
    took: dict[str, float]
    chunks: Shown


@dataclass
class Watch:
    """What a searcher sees."""

    begin: float = field(default_factory=time.monotonic)
    looks: list[Look] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def now(self) -> float:
        """Seconds since the watch began."""
        return time.monotonic() - self.begin

    @asynccontextmanager
    async def phase(self, results: dict[str, Any], name: str) -> AsyncIterator[dict[str, Any]]:
        """Something happens; the results get what was seen meanwhile. A fall is from one look to the next."""
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
    """Somebody searches both stores all the while."""
    watch = Watch()

    async def look(stores: Stores, searcher: Searcher) -> Look:
        at, took = watch.now, {}
        for mode in MODES:
            started = time.monotonic()
            if len(hits := await searcher.search(QUERY, mode, HITS)) != HITS:
                watch.failures.append(f"{mode}: {len(hits)} hits instead of {HITS}")
            took[mode] = time.monotonic() - started
        # Not its own count(), which would refresh the index: what a search could find now.
        body = {"query": {"bool": {"must_not": {"term": {"deleted": True}}}}}
        counted = await stores.opensearch._call("POST", f"/{settings.opensearch_alias}/_count", body=body)
        return Look(at, took, (await stores.neo4j.count(), counted["count"]))

    async def search(stores: Stores, searcher: Searcher) -> None:
        while True:
            try:
                watch.looks.append(await look(stores, searcher))
            except Exception as error:  # whatever it is, a searcher has noticed
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
    """Somebody publishes so many records a second: new chunks, updates of old ones, tombstones of what was new."""

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
    """One of each stage."""
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
    """The package's own."""
    return [sys.executable, "-m", "stream", *arguments]


def environment(settings: Settings) -> dict[str, str]:
    """Of a process with these settings."""
    own = {name: str(getattr(settings, name)) for name in OWN} | {"web_port": "0"}
    return os.environ | {f"STREAM_{name.upper()}": value for name, value in own.items()}


async def run(settings: Settings, *arguments: str) -> bytes:
    """A command that must succeed; returns what it prints."""
    process = await asyncio.create_subprocess_exec(
        *command(*arguments), env=environment(settings), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    printed, said = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"stream {' '.join(arguments)} ended with {process.returncode}: {(printed + said).decode()}")
    return printed


async def killed(settings: Settings, generation: int, chunks: int) -> list[int]:
    """Kills `stream reindex start` again and again; returns how many records the generation had each time."""
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
    """Records that the generation has."""
    async with clients.admin(settings) as admin:
        return sum(
            (await committed(admin, topics.group(reindex.for_generation(settings, generation), "index"))).values()
        )


async def bench(settings: Settings, chunks: int, rate: float, quiet: float) -> dict[str, Any]:
    """All of it; the phases in the order in which they happen."""
    other = settings.model_copy(update={"flow": "other", "embed_revision": "another"})
    phases: dict[str, Any] = {}
    verified: dict[str, Any] = {}

    async def proved(name: str, settings: Settings) -> None:
        verified[name] = orjson.loads(await run(settings, "verify", "--wait", "120", "--json"))
        print(f"{name}: {verified[name]}", file=sys.stderr)

    LOGS.mkdir(parents=True, exist_ok=True)
    await topics.create(settings)
    async with open_stores(settings) as stores:
        if await stores.neo4j.count():
            raise ConfigurationError("Neo4j holds chunks already: use one that is empty")
    await publish(settings, "embed", (short(n) for n in range(chunks)))
    with workers(settings):
        await caught_up(settings)
        async with written(settings, chunks, rate), searched(settings) as watch:
            async with watch.phase(phases, "no reindex"):
                await asyncio.sleep(quiet)
            async with watch.phase(phases, "from chunks.expanded") as phase:
                phase["killed_at"] = await killed(settings, 2, chunks)
                await run(settings, "reindex", "start")
            await proved("from chunks.expanded", settings)
            async with watch.phase(phases, "rollback"):
                await run(settings, "reindex", "rollback")
            await proved("rollback", settings)
            async with watch.phase(phases, "from chunks, for another model") as phase:
                phase["killed_at"] = await killed(other, 3, chunks)
                await run(other, "reindex", "start")
        with workers(other):
            await caught_up(settings)
            await caught_up(other)
            await proved("the old model", settings)
            await proved("the new model", other)
    looks = [[round(look.at, 1), *look.chunks] for look in watch.looks]
    return {
        **{"device": device(), "chunks": chunks, "records_a_second": rate},
        **{"phases": phases, "verified": verified, "looks": looks},
    }


def draw(axes: Axes, results: dict[str, Any]) -> None:
    """How many chunks searches could find."""
    at, *stores = zip(*results["looks"], strict=True)
    for name, chunks in zip(("Neo4j", "OpenSearch"), stores, strict=True):
        axes.plot(at, chunks, label=name, linewidth=1)
    for n, (name, phase) in enumerate(results["phases"].items()):
        axes.axvspan(phase["since"], phase["until"], alpha=0.15, color=f"C{n + 2}", label=name)
    axes.set(xlabel="seconds", ylabel="chunks that a search can find")
    axes.legend()


def main(
    chunks: Annotated[int, typer.Option(help="Chunks that are live before.")] = 20_000,
    rate: Annotated[float, typer.Option(help="Records a second that are written meanwhile.")] = 20,
    quiet: Annotated[float, typer.Option(help="Seconds of searching before the first reindex.")] = 60,
    out: Annotated[Path, typer.Option(help="Where the results go, .json and .svg.")] = Path("docs/figures/reindex"),
) -> None:
    """Reindex both ways under load, with accidents."""
    name = f"bench-{uuid.uuid4().hex[:8]}"
    results = asyncio.run(bench(config.load(topic=name, opensearch_alias=name, neo4j_index=name), chunks, rate, quiet))
    save(out, results, lambda axes: draw(axes, results))


if __name__ == "__main__":
    typer.run(main)
