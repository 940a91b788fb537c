"""Measures search: latency, recall, filters, load, a frozen store; and the quality of each way to fuse, on CACM.

    STREAM_ENV_FILE=.local/stream.env python bench/search.py speed --chunks 20000
    STREAM_ENV_FILE=.local/stream.env python bench/search.py quality FOLDER

`speed` fills an index of its own with docstrings of this Python's library and packages, encoded by the configured
models, and keeps it: the next run is quick. `quality` needs the index that `stream eval --collection cacm` leaves.
"""

import ast
import asyncio
import random
import signal
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import orjson
import typer
from measure import device
from rich.console import Console

from stream import config, corpus
from stream.config import SearchMode, Settings
from stream.evaluate.collection import read
from stream.evaluate.evaluation import own_names
from stream.evaluate.measures import measure
from stream.evaluate.runs import ranked
from stream.local.profile import Profile
from stream.local.supervisor import kill
from stream.models.embeddings import EmbeddingClient
from stream.models.splade import SparseEncoder
from stream.records import Chunk, sha256
from stream.search import dsl
from stream.search.clock import Clock
from stream.search.dsl import Query
from stream.search.fusion import fuse
from stream.search.legs import opensearch_condition
from stream.search.ranking import Ranking
from stream.search.request import DEPTH, LEGS, MOST_HITS, Request
from stream.search.searcher import Searcher
from stream.stores import Stores, open_stores
from stream.stores.base import Put
from stream.stores.opensearch import escape
from stream.vectors import Vector, unpack

OWN = {"opensearch_alias": "bench-search", "neo4j_index": "bench_search", "neo4j_label": "BenchSearch", "flow": ""}
SELECTIVITIES = (1.0, 0.5, 0.1, 0.01, 0.001, 0.0001)
NUMBERS = 10_000  # distinct values of metadata.n
MODES: tuple[SearchMode, ...] = ("bm25", "splade", "dense", "lexical", "hybrid")
BATCH = 256
WEIGHTINGS = [
    (1, 0, 1),
    (1, 1, 0),
    (0, 1, 1),
    (1, 1, 1),
    (1, 1, 2),
    (2, 1, 2),
    (2, 1, 3),
    (2, 1, 4),
    (2, 2, 3),
]

app = typer.Typer(pretty_exceptions_enable=False)
console = Console(stderr=True)


# The index


def texts() -> Iterator[Chunk]:
    """Docstrings of the standard library, then of the installed packages."""
    yield from corpus.chunks()
    packages = Path(sysconfig.get_path("purelib"))
    for file in sorted(packages.rglob("*.py")):
        module = ".".join(file.relative_to(packages).with_suffix("").parts)
        try:
            yield from corpus._module_chunks(module, ast.parse(file.read_bytes(), file))
        except (SyntaxError, ValueError):
            continue


async def fill(settings: Settings, stores: Stores, count: int) -> None:
    """Encodes and stores chunks until both stores have `count`."""
    await stores.set_up()
    if min([await store.count() for store in stores.both]) >= count:
        return
    shuffled = random.Random(1).sample(range(count), count)
    chunks = [chunk | {"metadata": {"n": n % NUMBERS}} for chunk, n in zip(texts(), shuffled, strict=False)]
    encoder = SparseEncoder(settings)
    async with EmbeddingClient(settings) as embedder:
        for start in range(0, len(chunks), BATCH):
            some = chunks[start : start + BATCH]
            asked = [chunk["text"] for chunk in some]
            vectors, terms = await asyncio.gather(embedder.embed(asked), asyncio.to_thread(encoder.encode, asked))
            made = {"embedding_provenance": embedder.provenance, "splade_provenance": encoder.provenance}
            puts = [
                Put(
                    chunk  # type: ignore[arg-type]
                    | {"text_sha256": sha256(chunk["text"]), "splade_terms": sparse.terms, "splade_norm": sparse.norm}
                    | made,
                    unpack(vector),
                )
                for chunk, vector, sparse in zip(some, vectors, terms, strict=True)
            ]
            for store in stores.both:
                rejected = await store.write(puts)
                assert not rejected, rejected
            console.print(f"{start + len(some)} of {len(chunks)}", highlight=False)
    await stores.opensearch.count()


def asked(count: int) -> list[str]:
    """Queries: the first words of docstrings of the library."""
    lines = [chunk["text"].strip().split("\n")[0] for chunk in corpus.chunks()]
    fit = sorted({" ".join(line.split()[:12]) for line in lines if len(line.split()) > 3})
    return random.Random(2).sample(fit, count)


# Measurements


@dataclass(frozen=True)
class Spread:
    """Milliseconds."""

    p50: float
    p95: float
    worst: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Spread":
        """Of durations in seconds."""
        return cls(*(round(1000 * float(np.quantile(seconds, q)), 1) for q in (0.5, 0.95, 1)))


async def timed(searcher: Searcher, requests: Sequence[Request]) -> tuple[Spread, list[int]]:
    """One client: latency, and the number of hits of each request."""
    seconds, hits = [], []
    for request in requests:
        start = time.perf_counter()
        answer = await searcher.search(request)
        seconds.append(time.perf_counter() - start)
        hits.append(len(answer.hits))
        assert not answer.degraded, answer.degraded
    return Spread.of(seconds), hits


async def latency(make: Callable[[], Searcher], queries: Sequence[str]) -> dict[str, Any]:
    """Each mode, with queries that are new to the cache, and again with cached ones."""
    results: dict[str, Any] = {}
    for mode in MODES:
        searcher = make()
        await searcher.warm(LEGS[mode])
        requests = [Request(query=query, mode=mode) for query in queries]
        await timed(searcher, requests[:20])
        first, _ = await timed(searcher, requests[20:])
        again, _ = await timed(searcher, requests[20:])
        results[mode] = {"first": first, "cached": again}
        console.print(mode, results[mode], highlight=False)
    return results


async def recall(searcher: Searcher, stores: Stores, queries: Sequence[str]) -> dict[str, float]:
    """The first ten of `dense` compared with a brute-force search over all stored vectors."""
    rows = await stores.neo4j._run(
        "MATCH (c:Chunk) RETURN c.chunk_id AS chunk_id, c.embedding_qwen AS vector ORDER BY chunk_id"
    )
    names = [row["chunk_id"] for row in rows]
    stored = np.array([row["vector"] for row in rows], np.float64)
    stored /= np.linalg.norm(stored, axis=1, keepdims=True)
    found, worst = [], 0.0
    for query in queries:
        vector: Vector = await searcher._legs.encoder.vector(query)
        cosines = stored @ (vector.astype(np.float64) / np.linalg.norm(vector.astype(np.float64)))
        exact = dict(zip(names, cosines.tolist(), strict=True))
        best = {names[n] for n in np.argsort(-cosines)[:10]}
        answer = await searcher.search(Request(query=query, mode="dense"))
        found.append(len(best & {hit.chunk_id for hit in answer.hits}) / 10)
        worst = max([worst, *(abs(hit.score - exact[hit.chunk_id]) for hit in answer.hits)])
    return {"recall@10": float(np.mean(found)), "largest difference of a score": worst}


def forms(terms: Mapping[str, float], plugin: bool) -> dict[str, Query]:
    """A search by these terms in one phase and in two; `plugin`: also with the query type `neural_sparse`."""
    heavy, light = dsl.heavy_and_light(terms)

    def neural(some: Mapping[str, float]) -> Query:
        tokens = {escape(name): weight for name, weight in some.items()}
        return dsl.raw({"neural_sparse": {"splade_terms": {"query_tokens": tokens}}}, "splade")

    found = {
        "one": dsl.body([dsl.terms(terms, normalised=True)], None, DEPTH),
        "two": dsl.in_two_phases(terms, normalised=True, condition=None, size=DEPTH),
    }
    if plugin:
        found["one, neural_sparse"] = dsl.body([neural(terms)], None, DEPTH)
        found["two, neural_sparse"] = dsl.body([neural(heavy)], None, DEPTH)
        if light:
            rescore = {"rescore_query": neural(light), "score_mode": "total"}
            found["two, neural_sparse"]["rescore"] = {"window_size": DEPTH, "query": rescore}
    return found


async def phases(searcher: Searcher, stores: Stores, queries: Sequence[str], plugin: bool = False) -> dict[str, Any]:
    """SPLADE's forms: milliseconds, and how many of the first ten are those of one phase."""
    seconds: dict[str, list[float]] = {}
    same: dict[str, list[float]] = {}
    for number, query in enumerate(queries):
        bodies = list(forms(await searcher._legs.encoder.terms(query), plugin).items())
        found = {}
        for name, body in bodies if number % 2 else reversed(bodies):
            start = time.perf_counter()
            found[name] = dsl.rows(await stores.opensearch.search(body, 1))
            seconds.setdefault(name, []).append(time.perf_counter() - start)
        best = {name: {row.chunk_id for row in rows[:10]} for name, rows in found.items()}
        for name, ids in best.items():
            same.setdefault(name, []).append(len(ids & best["one"]) / 10)
    times: dict[str, Any] = {name: Spread.of(each) for name, each in seconds.items()}
    return times | {"the same first ten": {name: float(np.mean(each)) for name, each in same.items()}}


async def matching(searcher: Searcher, stores: Stores, request: Request) -> int:
    """The chunks that match a request: for the legs that compare words, those that share a word or a term with it."""
    condition = opensearch_condition(request)
    queries = [] if "dense" in request.legs else [await searcher._legs.query(request, leg) for leg in request.legs]
    counting = dsl.body(queries or [{"match_all": {}}], condition, 0) | {"track_total_hits": True}
    answer = await stores.opensearch.search(counting, 1)
    found: int = answer["hits"]["total"]["value"]
    return found


async def filtered(searcher: Searcher, stores: Stores, queries: Sequence[str]) -> list[dict[str, Any]]:
    """Each mode at each selectivity: latency, and the requests that got fewer hits than min(k, matching)."""
    rows = []
    for mode in MODES:
        everything, _ = await timed(searcher, [Request(query=query, mode=mode) for query in queries])
        for selectivity in SELECTIVITIES:
            below = {"field": "metadata.n", "lt": selectivity * NUMBERS}
            requests = [Request(query=query, mode=mode, filter=below) for query in queries]
            spread, hits = await timed(searcher, requests)
            expected = [min(request.k, await matching(searcher, stores, request)) for request in requests]
            row = {
                "mode": mode,
                "selectivity": selectivity,
                "fewest hits": min(hits),
                "too few": sum(found < least for found, least in zip(hits, expected, strict=True)),
                "ms": spread,
                "p95 to unfiltered": round(spread.p95 / everything.p95, 2),
            }
            rows.append(row)
            console.print(row, highlight=False)
    return rows


async def load(searcher: Searcher, queries: Sequence[str], clients: int, seconds: float) -> dict[str, Any]:
    """Some clients that ask one request after the other; new queries, hybrid."""
    ends = time.perf_counter() + seconds
    durations, errors = [], 0
    left = iter(f"{query} {n}" for n in range(1000) for query in queries)

    async def client() -> None:
        nonlocal errors
        while time.perf_counter() < ends:
            start = time.perf_counter()
            answer = await searcher.search(Request(query=next(left), deadline=60))
            errors += bool(answer.degraded)
            durations.append(time.perf_counter() - start)

    cpu = time.process_time()
    await asyncio.gather(*(client() for _ in range(clients)))
    used = (time.process_time() - cpu) / seconds
    return {
        "clients": clients,
        "a second": round(len(durations) / seconds, 1),
        "ms": Spread.of(durations),
        "degraded": errors,
        "cores used by the client": round(used, 2),
    }


async def frozen(make: Callable[[], Searcher], query: str) -> dict[str, Any]:
    """The time until the answer while a store is stopped with SIGSTOP, with a deadline of 500 ms."""
    results = {}
    profile = Profile.from_environment(Path(".local"))
    for name, pattern in (("neo4j", "dense"), ("opensearch", "bm25")):
        searcher = make()
        await searcher.warm(LEGS["hybrid"])
        await searcher.search(Request(query=query))
        kill(profile, name, signal.SIGSTOP)
        try:
            start = time.perf_counter()
            answer = await searcher.search(Request(query=query, deadline=0.5))
            took = time.perf_counter() - start
        finally:
            kill(profile, name, signal.SIGCONT)
        assert pattern in answer.degraded, answer.degraded
        results[name] = {"ms": round(1000 * took), "hits": len(answer.hits), "degraded": answer.degraded}
    return results


@asynccontextmanager
async def opened(settings: Settings) -> Any:
    """The stores and a way to make searchers with an empty cache."""
    async with open_stores(settings) as stores, EmbeddingClient(settings) as embedder:
        yield stores, lambda: Searcher(settings, stores, embedder)


@app.command()
def speed(
    chunks: Annotated[int, typer.Option(help="Chunks in the index.")] = 20_000,
    queries: Annotated[int, typer.Option(help="Queries of each measurement.")] = 220,
    seconds: Annotated[float, typer.Option(help="Seconds with 50 clients; a quarter of it with fewer.")] = 60,
    out: Annotated[Path, typer.Option(help="The result.")] = Path("docs/figures/search.json"),
) -> None:
    """Latency, recall, filters, load, a frozen store."""

    async def run() -> dict[str, Any]:
        settings = config.load().model_copy(update=OWN)
        async with opened(settings) as (stores, make):
            await fill(settings, stores, chunks)
            words = asked(queries)
            searcher = make()
            await searcher.warm(LEGS["hybrid"])
            # Java compiles what it has run often: servers that have just started are slower.
            for mode in MODES:
                await timed(searcher, [Request(query=query, mode=mode, deadline=60) for query in words])
            results: dict[str, Any] = {"device": device(), "chunks": chunks}
            results["latency"] = await latency(make, words)
            results["dense"] = await recall(searcher, stores, words)
            console.print(results["dense"], highlight=False)
            results["phases"] = await phases(searcher, stores, words)
            console.print(results["phases"], highlight=False)
            results["filters"] = await filtered(searcher, stores, words[:50])
            results["load"] = []
            for clients, share in ((1, 0.25), (2, 0.25), (5, 0.25), (10, 0.25), (50, 1)):
                results["load"].append(await load(searcher, words, clients, share * seconds))
                console.print(results["load"][-1], highlight=False)
            results["frozen"] = await frozen(make, words[0])
            console.print(results["frozen"], highlight=False)
            return results

    out.write_bytes(orjson.dumps(asyncio.run(run()), option=orjson.OPT_INDENT_2) + b"\n")


@app.command()
def plugin(
    chunks: Annotated[int, typer.Option(help="Chunks in the index.")] = 20_000,
    queries: Annotated[int, typer.Option(help="Queries of each round; the first round is not measured.")] = 220,
    out: Annotated[Path, typer.Option(help="The result.")] = Path("docs/figures/neural-sparse.json"),
) -> None:
    """SPLADE by `rank_feature` clauses and by `neural_sparse`, on an OpenSearch with the plugin neural-search."""

    async def run() -> dict[str, Any]:
        settings = config.load().model_copy(update=OWN)
        async with opened(settings) as (stores, make):
            await fill(settings, stores, chunks)
            words, searcher = asked(queries), make()
            await phases(searcher, stores, words, plugin=True)
            found = await phases(searcher, stores, words, plugin=True)
            console.print(found, highlight=False)
            return {"device": device(), "chunks": chunks, "milliseconds": found}

    out.write_bytes(orjson.dumps(asyncio.run(run()), option=orjson.OPT_INDENT_2) + b"\n")


# Quality


@app.command()
def quality(
    folder: Annotated[Path, typer.Argument(help="A judged collection that `stream eval` has indexed.")],
    out: Annotated[Path, typer.Option(help="The result.")] = Path("docs/figures/fusion.json"),
) -> None:
    """nDCG@10 and recall of each leg, of SPLADE with fewer terms, and of each way to fuse."""

    async def run() -> dict[str, dict[str, float]]:
        collection = read(folder)
        settings = config.load()
        settings = settings.model_copy(update=own_names(settings, collection))
        rows: dict[str, dict[str, float]] = {}

        def note(name: str, runs: dict[str, list[str]]) -> None:
            values = measure(collection.qrels, {query: ranked(found) for query, found in runs.items()})
            rows[name] = {measured: round(float(each.mean()), 4) for measured, each in values.items()}
            console.print(f"{name:45}", rows[name], highlight=False)

        async def found(make: Callable[[], Searcher], **asked: Any) -> dict[str, Ranking]:
            searcher = make()
            await searcher.warm(LEGS["hybrid"])
            requests = {
                query: Request(query=text, deadline=600, strict=True, **asked)
                for query, text in collection.queries.items()
            }
            return {query: await searcher._rank(one, Clock(600)) for query, one in requests.items()}

        def ids(rankings: dict[str, Ranking]) -> dict[str, list[str]]:
            return {query: [hit.chunk_id for hit in ranking.fused] for query, ranking in rankings.items()}

        for most in (4, 8, 12, 16, 24, 32, 48, 500):
            async with opened(settings.model_copy(update={"splade_query_terms": most})) as (_, make):
                note(f"splade, {most} terms", ids(await found(make, mode="splade")))
        async with opened(settings) as (_, make):
            for weight in (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1):
                note(f"lexical, splade {weight}", ids(await found(make, mode="lexical", weights={"splade": weight})))
            for k in (DEPTH, MOST_HITS):
                rankings = await found(make, k=k)
                for leg in LEGS["hybrid"]:
                    legs = {query: [name for name, _ in each.found[leg].hits] for query, each in rankings.items()}
                    note(f"{leg}, {k} hits", legs)
                for method in ("min-max", "rrf"):
                    for weights in WEIGHTINGS:
                        by_leg = dict(zip(LEGS["hybrid"], weights, strict=True))
                        used = {leg: weight for leg, weight in by_leg.items() if weight}
                        fused = {
                            query: [
                                hit.chunk_id for hit in fuse({leg: each.found[leg].hits for leg in used}, used, method)
                            ]
                            for query, each in rankings.items()
                        }
                        note(f"{method} {weights}, {k} hits", fused)
        return rows

    out.write_bytes(orjson.dumps(asyncio.run(run()), option=orjson.OPT_INDENT_2) + b"\n")


if __name__ == "__main__":
    app()
