"""Compares the index stage with the stores' bulk loaders and with the way in which Kafka Connect's sinks write.

Each way writes the same documents and the same nodes into empty indexes, with the same Python clients:

    stage     decodes records of `chunks.expanded` and runs the index stage on one batch after another, as a worker does
    loaders   `opensearchpy.helpers.async_bulk` and, at the same time, `UNWIND $rows` through Neo4j's driver
              (https://neo4j.com/docs/data-ingestion-guide/ingestion-methods/unwind/): no versions, no decoding, and the
              documents and rows exist before the clock starts
    sinks     decodes the records and writes them into one store after the other. The OpenSearch sink has 5 requests of
              2,000 documents in flight, each with its offset as external version
              (https://github.com/Aiven-Open/opensearch-connector-for-apache-kafka). The Neo4j sink writes 1,000 events
              in a transaction, `UNWIND $events` around a statement (https://neo4j.com/docs/kafka/current/sink/cypher)
    parallel  the same sinks, as two connectors that run at the same time

    STREAM_ENV_FILE=.local/stream.env python bench/sink.py

The order of the ways alternates. The first batch of a run is not timed: it opens connections, and Neo4j plans the
statement. Each run has indexes, a label and constraints of its own, which are deleted.
"""

import asyncio
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any, TypeVar

import orjson
import typer
from data import chunk, expanded
from matplotlib.axes import Axes
from measure import device, save
from neo4j import AsyncManagedTransaction
from opensearchpy.helpers import async_bulk

from stream import config
from stream.config import Settings
from stream.records import Decoder, Done, Record, encode
from stream.stages.index import index
from stream.stores import Stores, open_stores
from stream.stores.base import FIRST, Put
from stream.stores.neo4j import _row, _Rows, _Schema
from stream.stores.opensearch import _document
from stream.vectors import unpack

DIMENSIONS = 4096
BATCH = 256  # the default of STREAM_BATCH_SIZE
OPENSEARCH_BATCH, OPENSEARCH_IN_FLIGHT, NEO4J_BATCH = 2_000, 5, 1_000  # of the sinks: their defaults

MERGE = """
MERGE (chunk:{label} {{chunk_id: {row}.chunk_id}})
SET chunk += {row}.properties
WITH chunk, {row}
CALL db.create.setNodeVectorProperty(chunk, 'embedding_qwen', {row}.vector)
"""
LOAD = "UNWIND $rows AS row" + MERGE
SINK = (
    """
UNWIND $events AS message
WITH message.value AS event, message.header AS __header, message.key AS __key, message.value AS __value
CALL {{ WITH *"""
    + MERGE
    + "}}"
)

NAMES = """
SHOW {kind} YIELD name, labelsOrTypes
WHERE any(label IN labelsOrTypes WHERE label CONTAINS $label) RETURN name
"""
EMPTIED = "MATCH (chunk:{label}) WITH chunk LIMIT 1000 DETACH DELETE chunk RETURN count(*) AS n"

Item = TypeVar("Item")
Write = Callable[[Sequence[Any]], Awaitable[object]]  # writes these records, or what was made of them before
Way = Callable[[Settings, Stores], Write]


# The data


def records(numbers: range) -> list[Record]:
    """Records of `chunks.expanded`."""
    made = []
    for n in numbers:
        one = expanded(chunk(n))
        value, headers = encode(one)
        made.append(Record("chunks.expanded", 0, n, one["chunk_id"].encode(), value, 0, headers))
    return made


def decoded(record: Record) -> Any:
    """A record's chunk with its position, as the batch loop passes it to the stage."""
    return Decoder("expanded", sys.maxsize)(record) | {"position": record.position}  # type: ignore[operator]


def document(of: Any) -> dict[str, Any]:
    """What the stage writes into OpenSearch, as the client's own serialiser takes it."""
    return _document(of) | {"position": asdict(of["position"])}


def row(settings: Settings, of: Any) -> dict[str, Any]:
    """What the stage writes into Neo4j, without what it needs for the versions."""
    made = _row(Put(of, unpack(of["embedding_qwen"])), _Schema(settings, FIRST).properties)
    return {"chunk_id": made["chunk_id"], "properties": made["properties"] | made["made"], "vector": made["vector"]}


def parts(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """Consecutive parts of a size; the last may be smaller."""
    return [items[at : at + size] for at in range(0, len(items), size)]


# The ways


def stage(settings: Settings, stores: Stores) -> Write:
    """The index stage."""

    async def write(some: Sequence[Record]) -> None:
        for part in parts(some, BATCH):
            outcomes = await index([decoded(each) for each in part], stores=stores.both, dimensions=DIMENSIONS)
            assert all(isinstance(outcome, Done) for outcome in outcomes)

    return write


def loaders(settings: Settings, stores: Stores, bulk: int, rows: int, at_once: int) -> Write:
    """The bulk loaders of both stores at the same time; takes documents and rows."""

    statement = LOAD.format(label=settings.neo4j_label, row="row")

    async def load(left: Iterator[Sequence[Any]]) -> None:
        for part in left:
            database = settings.neo4j_database
            await stores.neo4j._driver.execute_query(statement, rows=_Rows(part), database_=database)

    async def write(some: Sequence[tuple[Any, Any]]) -> None:
        documents, nodes = zip(*some, strict=True)
        actions = [{"_id": each["chunk_id"], "_source": each} for each in documents]
        sent = async_bulk(stores.opensearch._client, actions, chunk_size=bulk, index=settings.opensearch_alias)
        left = iter(parts(nodes, rows))
        await asyncio.gather(sent, *(load(left) for _ in range(at_once)))

    return write


def opensearch_sink(settings: Settings, stores: Stores) -> Write:
    """The way of the OpenSearch sink."""
    room = asyncio.Semaphore(OPENSEARCH_IN_FLIGHT)

    async def send(part: Sequence[Record]) -> None:
        async with room:
            actions = [
                {
                    "_id": of["chunk_id"],
                    "_version": of["position"].offset,
                    "_version_type": "external",
                    "_source": document(of),
                }
                for of in map(decoded, part)
            ]
            alias = settings.opensearch_alias
            await async_bulk(stores.opensearch._client, actions, chunk_size=len(part), index=alias)

    async def write(some: Sequence[Record]) -> None:
        await asyncio.gather(*map(send, parts(some, OPENSEARCH_BATCH)))

    return write


def neo4j_sink(settings: Settings, stores: Stores) -> Write:
    """The way of the Neo4j sink with its Cypher strategy."""
    statement = SINK.format(label=settings.neo4j_label, row="__value")

    async def run(transaction: AsyncManagedTransaction, events: Sequence[Any]) -> None:
        await (await transaction.run(statement, events=_Rows(events))).consume()

    async def write(some: Sequence[Record]) -> None:
        for part in parts(some, NEO4J_BATCH):
            values = [row(settings, decoded(each)) for each in part]
            events = [{"header": {}, "key": value["chunk_id"], "value": value} for value in values]
            async with stores.neo4j._driver.session(database=settings.neo4j_database) as session:
                await session.execute_write(run, events)

    return write


def sinks(settings: Settings, stores: Stores) -> Write:
    """Both sinks, one after the other."""
    writes = [sink(settings, stores) for sink in (opensearch_sink, neo4j_sink)]

    async def write(some: Sequence[Record]) -> None:
        for each in writes:
            await each(some)

    return write


def parallel(settings: Settings, stores: Stores) -> Write:
    """Both sinks at the same time."""
    writes = [sink(settings, stores) for sink in (opensearch_sink, neo4j_sink)]

    async def write(some: Sequence[Record]) -> None:
        await asyncio.gather(*(each(some) for each in writes))

    return write


# The runs


async def measured(way: Way, some: Sequence[Record], made: bool) -> dict[str, float]:
    """One run of a way into empty indexes: chunks a second, and seconds of this process's CPU for a chunk.

    `made`: the way takes documents and rows, not records.
    """
    own = f"bench{uuid.uuid4().hex[:8]}"
    settings = config.load(
        embed_dimensions=str(DIMENSIONS), opensearch_alias=own, neo4j_index=own, neo4j_label=own.capitalize()
    )
    async with open_stores(settings) as stores:
        await stores.set_up()
        try:
            write = way(settings, stores)
            given: Sequence[Any] = some
            if made:
                given = [(document(of), row(settings, of)) for of in map(decoded, some)]
            await write(given[:BATCH])
            began, cpu = time.perf_counter(), time.process_time()
            await write(given[BATCH:])
            seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
            await check(stores, some)
        finally:
            await delete(settings, stores)
    timed = len(some) - BATCH
    return {"rate": timed / seconds, "client_cpu": cpu / timed}


async def check(stores: Stores, some: Sequence[Record]) -> None:
    """Checks that both stores have every chunk, with its vector and its terms."""
    for part in parts([(each.key or b"").decode() for each in some], 1_000):
        for store in stores.both:
            found = await store.stored(part)
            assert len(found) == len(part) and all(each.complete for each in found.values()), store.name


async def delete(settings: Settings, stores: Stores) -> None:
    """Deletes everything that the run has created."""
    await stores.opensearch.drop(FIRST)
    label = settings.neo4j_label
    for kind in ("CONSTRAINT", "INDEX"):  # a constraint drops its index
        for found in await stores.neo4j._run(NAMES.format(kind=kind), label=label):
            await stores.neo4j._run(f"DROP {kind} `{found['name']}`")
    while (await stores.neo4j._run(EMPTIED.format(label=label)))[0]["n"]:
        pass


async def bench(chunks: int, rounds: int, ways: Mapping[str, Way]) -> dict[str, Any]:
    """All rounds, after a short one that warms the servers."""
    some = records(range(BATCH + chunks))
    for name in ways:
        await measured(ways[name], some[: 3 * BATCH], made=name == "loaders")
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for n in range(rounds):
        for name in ways if n % 2 == 0 else reversed(list(ways)):
            runs[name].append(await measured(ways[name], some, made=name == "loaders"))
            print(f"round {n + 1}, {name}: {runs[name][-1]['rate']:,.0f} chunks/s", file=sys.stderr)
    rates = {name: [run["rate"] for run in found] for name, found in runs.items()}
    return {
        "device": device(),
        "chunks": chunks,
        "dimensions": DIMENSIONS,
        "ways": {
            name: {
                "chunks_a_second": median(found),
                "slowest": min(found),
                "fastest": max(found),
                "client_cpu_seconds_a_chunk": median(run["client_cpu"] for run in runs[name]),
                "rounds": found,
            }
            for name, found in rates.items()
        },
        "stage_to": {
            name: median(a / b for a, b in zip(rates["stage"], found, strict=True))
            for name, found in rates.items()
            if name != "stage"
        },
    }


def draw(axes: Axes, ways: dict[str, Any]) -> None:
    """Draws the medians, with the slowest and the fastest round."""
    names = list(ways)
    medians = [ways[name]["chunks_a_second"] for name in names]
    spread = [
        [ways[name]["chunks_a_second"] - ways[name]["slowest"] for name in names],
        [ways[name]["fastest"] - ways[name]["chunks_a_second"] for name in names],
    ]
    axes.bar_label(axes.barh(names, medians, xerr=spread), fmt="{:,.0f}", padding=4)
    axes.set(xlabel="chunks a second; the line shows the slowest and the fastest round")


def main(
    chunks: Annotated[int, typer.Option(help="Chunks of a run, without the first batch.")] = 3_072,
    rounds: Annotated[int, typer.Option(help="Rounds; each runs all ways.")] = 3,
    bulk: Annotated[int, typer.Option(help="Of the loaders: documents in a request.")] = 500,
    rows: Annotated[int, typer.Option(help="Of the loaders: rows in a transaction.")] = 256,
    at_once: Annotated[int, typer.Option(help="Of the loaders: transactions at the same time.")] = 2,
    out: Annotated[Path, typer.Option(help="Output path; writes .json and .svg.")] = Path("docs/figures/sink"),
) -> None:
    """Compare the index stage with bulk loaders and with Kafka Connect's sinks."""
    loaded = partial(loaders, bulk=bulk, rows=rows, at_once=at_once)
    ways: dict[str, Way] = {"stage": stage, "loaders": loaded, "sinks": sinks, "parallel": parallel}
    results = asyncio.run(bench(chunks, rounds, ways)) | {"loaders": {"bulk": bulk, "rows": rows, "at_once": at_once}}
    save(out, results, lambda axes: draw(axes, results["ways"]))
    print(orjson.dumps(results, option=orjson.OPT_INDENT_2).decode())


if __name__ == "__main__":
    typer.run(main)
