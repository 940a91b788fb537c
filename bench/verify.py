"""Measures the cost of `stream verify` and checks that it names exactly the differences that exist.

Publishes chunks of the usual size to a new topic and writes the results of the stages (random unit vectors, random
terms) into both stores, with updates, tombstones and dead letters among them. At each size it measures one run of
verify in a separate process. Then it plants a few differences and compares them with those that verify names.

    STREAM_ENV_FILE=.local/stream.env python bench/verify.py --chunks 10000 --chunks 50000

Neo4j must hold no chunks. The topic, the index and the chunks are not deleted: use disposable servers.
"""

import asyncio
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import orjson
import typer
from aiokafka import AIOKafkaProducer
from data import chunk, expanded
from matplotlib.axes import Axes
from measure import MIB, device, memory, save

from stream import config
from stream.config import Settings, StageName
from stream.errors import ConfigurationError
from stream.kafka import clients, topics
from stream.kafka.deadletters import letter_headers
from stream.operate.verify import Report, verify
from stream.records import Chunk, Record, Rejected, Tombstone, encode, sha256
from stream.stores import Stores, open_stores
from stream.stores.base import Put
from stream.vectors import unpack

BATCH = 256
MILLION = 1_000_000


# Test data


def put(of: Chunk) -> Put:
    """A chunk as the stores write it."""
    made = expanded(of)
    return Put(made, unpack(made["embedding_qwen"]))


async def publish(producer: AIOKafkaProducer, topic: str, of: Chunk | Tombstone) -> Record:
    """Publishes one record and returns it with its place."""
    if isinstance(of, Tombstone):
        key, value, headers = of.chunk_id.encode(), None, [("version", str(of.version).encode())]
    else:
        key, value, headers = of["chunk_id"].encode(), orjson.dumps(of), []
    sent = await (await producer.send(topic, key=key, value=value, headers=headers))
    return Record(topic, sent.partition, sent.offset, key, value, sent.timestamp, headers)


async def fill(settings: Settings, stores: Stores, numbers: range) -> Report:
    """Publishes and stores chunks. Returns the report that verify must give.

    Of every 100 chunks, 2 are updated, one is deleted and one is rejected, alternately by embed and by index.
    """
    expected = Report(published=len(numbers))
    async with clients.producer(settings) as producer, clients.letter_producer(settings) as letters:

        async def reject(record: Record, stage: StageName) -> None:
            headers = letter_headers(record, stage, Rejected("schema", "planted"))
            await letters.send_and_wait(
                topics.dead_letters(settings, stage), key=record.key, value=record.value, headers=headers
            )

        for batch in (numbers[n : n + BATCH] for n in range(0, len(numbers), BATCH)):
            chunks = [chunk(n) for n in batch]
            records = await asyncio.gather(*(publish(producer, settings.topic, one) for one in chunks))
            later: list[Chunk | Tombstone] = []
            rejected = []
            for n, one, record in zip(batch, chunks, records, strict=True):
                if n % 100 == 0:
                    rejected.append(one["chunk_id"])
                    if n % 200:
                        await reject(record, "embed")
                    else:  # index rejects the record that the previous stage made of the chunk
                        value, vector = encode(expanded(one))
                        topic = topics.source(settings, "index")
                        await reject(Record(topic, 0, n, record.key, value, record.timestamp, vector), "index")
                elif n % 100 == 1:
                    later.append(Tombstone(one["chunk_id"], 2))
                elif n % 50 == 2:
                    later.append(chunk(n, 2))
            await asyncio.gather(*(publish(producer, settings.topic, one) for one in later))
            await write(stores, [put(one) for one in chunks if one["chunk_id"] not in rejected])
            await write(stores, [one if isinstance(one, Tombstone) else put(one) for one in later])
            expected.dead_lettered += len(rejected)
            expected.deleted += sum(isinstance(one, Tombstone) for one in later)
            print(f"\r{batch[-1] + 1:,} chunks published and stored", end="", file=sys.stderr, flush=True)
    expected.indexed = expected.published - expected.deleted - expected.dead_lettered
    print(file=sys.stderr)
    return expected


async def write(stores: Stores, writes: Sequence[Put | Tombstone]) -> None:
    """Writes into both stores concurrently. Neither may refuse a write."""
    for refused in await asyncio.gather(*(store.write(writes) for store in stores.both)):
        assert not refused, refused


# Cost


async def measured(settings: Settings) -> dict[str, Any]:
    """Measures one run of verify in this process: rates in chunks per second, memory and disk in bytes."""
    reading: list[tuple[float, int]] = []
    comparing: list[tuple[float, int]] = []
    resident: list[int] = []
    file = 0

    def note(times: list[tuple[float, int]]) -> Any:
        def progress(n: int, _: int) -> None:
            nonlocal file
            times.append((time.monotonic(), n))
            resident.append(memory())
            file = max(file, _temporary_file())

        return progress

    async with open_stores(settings) as stores:
        for store in stores.both:
            await store.count()  # opens the connection
        before, started = memory(), time.monotonic()
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak (VmHWM)
        report = await verify(settings, stores, reading=note(reading), progress=note(comparing))
    return {
        "report": asdict(report),
        "seconds": time.monotonic() - started,
        "read_per_second": _rate(reading),
        "compared_per_second": _rate(comparing),
        "memory_before": before,
        "memory_above": memory(what="VmHWM") - before,
        "memory_above_over_time": [now - before for now in resident],
        "file": file,
    }


def _rate(times: list[tuple[float, int]]) -> float:
    (first, n), (last, m) = times[0], times[-1]
    return (m - n) / (last - first) if last > first else float("nan")


def _temporary_file() -> int:
    sizes = [fd.stat().st_size for fd in Path("/proc/self/fd").iterdir() if "etilqs" in _target(fd)]
    return max(sizes, default=0)


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except FileNotFoundError:  # the descriptor of the listing itself is closed by now
        return ""


# Planted differences


async def plant(settings: Settings, stores: Stores, chunks: int) -> set[str]:
    """Makes one difference of each kind in correct chunks. Returns the sentences that verify must print."""
    good = (chunk(n) for n in range(chunks) if n % 50 > 2)
    ahead, outdated, text, vector, terms = islice(good, 5)
    missing, extra, deleted = chunk(chunks), chunk(chunks + 1), chunk(1)
    async with clients.producer(settings) as producer:
        await publish(producer, settings.topic, missing)
        await publish(producer, settings.topic, {**outdated, "version": 3})
        broken = await producer.send_and_wait(settings.topic, key=b"broken", value=b"{")
    await stores.neo4j.write([put({**ahead, "version": 9})])
    await stores.opensearch.write([put({**outdated, "version": 3})])
    await stores.opensearch.write([put({**text, "text": "another"})])
    halved = put(vector)
    await stores.neo4j.write([Put(halved.chunk, halved.vector[:2048])])
    without = {name: terms[name] for name in ("chunk_id", "doc_id", "text", "version")}  # type: ignore[literal-required]
    await stores.opensearch._call(  # the package never writes a chunk without terms
        "PUT",
        f"/{settings.opensearch_alias}/_doc/{terms['chunk_id']}",
        body=without | {"text_sha256": sha256(terms["text"])},
        version=1,
        version_type="external_gte",
    )
    await stores.neo4j.write([put({**deleted, "version": 2}), put(extra)])
    return {
        f"{missing['chunk_id']}: Neo4j does not have it, OpenSearch does not have it",
        f"{ahead['chunk_id']}: Neo4j has version 9, the topic 1",
        f"{outdated['chunk_id']}: Neo4j has version 1, the topic 3",
        f"{text['chunk_id']}: OpenSearch has another text",
        f"{vector['chunk_id']}: Neo4j has it without its vector or terms",
        f"{terms['chunk_id']}: OpenSearch has it without its vector or terms",
        f"{deleted['chunk_id']}: Neo4j still has it, although it was deleted",
        f"partition {broken.partition}, offset {broken.offset}: has no dead letter",
        "Neo4j holds 1 chunks more than the topic knows",
    }


# All sizes


async def bench(settings: Settings, sizes: Sequence[int], environment: dict[str, str]) -> dict[str, Any]:
    """Measures all sizes in ascending order, then checks the planted differences."""
    await topics.create(settings)
    runs = []
    async with open_stores(settings) as stores:
        if await stores.neo4j.count():
            raise ConfigurationError("Neo4j already holds chunks, which verify would count; use an empty Neo4j")
        await stores.set_up()
        expected, done = Report(), 0
        for size in sizes:
            more = await fill(settings, stores, range(done, size))
            expected = Report(*(getattr(expected, name) + getattr(more, name) for name in COUNTS))
            done = size
            child = [sys.executable, __file__, "--measure"]
            run = orjson.loads(subprocess.run(child, env=environment, check=True, stdout=subprocess.PIPE).stdout)
            assert run.pop("report") == asdict(expected), expected
            runs.append({"chunks": size, **run})
            print(f"{size:,} chunks: clean in {run['seconds']:.0f} s", file=sys.stderr)
        planted = await plant(settings, stores, done)
    child = [sys.executable, "-m", "stream", "verify", "--json"]
    ended = subprocess.run(child, env=environment, check=False, stdout=subprocess.PIPE)
    report = orjson.loads(ended.stdout)
    named = {said.partition(" (")[0] for said in report["differences"] + report["ahead_chunks"]}
    assert (ended.returncode, named) == (1, planted), named ^ planted
    return {"device": device(), "runs": runs, "planted": sorted(planted), "named": sorted(named)}


COUNTS = ("published", "indexed", "deleted", "dead_lettered")


def extrapolated(run: dict[str, Any]) -> dict[str, float]:
    """The cost of a million chunks, if the rates of a run stayed the same."""
    return {
        "seconds_reading": MILLION / run["read_per_second"],
        "seconds_comparing": MILLION / run["compared_per_second"],
        "file": MILLION * run["file"] / run["chunks"],
        "memory_above": run["memory_above"],
    }


def draw(axes: Axes, runs: Sequence[dict[str, Any]]) -> None:
    """Draws the memory of each run over its progress."""
    for run in runs:
        above = np.array(run["memory_above_over_time"]) / MIB
        axes.plot(np.linspace(0, 1, len(above)), above, label=f"{run['chunks']:,} chunks")
    axes.set(xlabel="progress of the run (reading, then comparing)", ylabel="resident memory above the start, MiB")
    axes.set_ylim(bottom=0)
    axes.legend()


def main(
    chunks: Annotated[list[int] | None, typer.Option(help="Number of chunks to measure at. Repeatable.")] = None,
    out: Annotated[Path, typer.Option(help="Output path; writes .json and .svg.")] = Path("docs/figures/verify"),
    measure: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Measure `stream verify` on real servers and check that it finds planted differences."""
    if measure:
        print(orjson.dumps(asyncio.run(measured(config.load()))).decode())
        return
    name = f"bench-{uuid.uuid4().hex[:8]}"
    settings = config.load(topic=name, opensearch_alias=name)
    environment = os.environ | {"STREAM_TOPIC": name, "STREAM_OPENSEARCH_ALIAS": name}
    results = asyncio.run(bench(settings, sorted(chunks or [10_000, 50_000]), environment))
    results["extrapolated_to_a_million"] = extrapolated(results["runs"][-1])
    save(out, results, lambda axes: draw(axes, results["runs"]))
    print(
        orjson.dumps({**results, "runs": [_short(run) for run in results["runs"]]}, option=orjson.OPT_INDENT_2).decode()
    )


def _short(run: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in run.items() if name != "memory_above_over_time"}


if __name__ == "__main__":
    typer.run(main)
