"""Shared by tests of several modules: example records, and workers in their own processes."""

import asyncio
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self
from unittest.mock import patch

import numpy as np
import orjson
from aiokafka import AIOKafkaProducer
from processes import Process
from prometheus_client.parser import text_string_to_metric_families

from stream.config import Settings, StageName
from stream.contracts import Contract
from stream.kafka import clients, reader, topics
from stream.models.terms import SparseVector, Vocabulary
from stream.records import Chunk, Expanded, Headers, Record, Tombstone, encode, sha256
from stream.search import dsl
from stream.stores import Stores
from stream.stores.opensearch import OpenSearchStore
from stream.vectors import pack

CONTRACTS: dict[StageName, Contract] = {"embed": "chunk", "expand": "embedded", "index": "expanded"}
DIMENSIONS = 256  # numbers in a vector, where a test does not need the real model's 4,096
LONGEST = 280  # seconds that a test waits for what takes a few; a machine may be slow and busy
LOGS = Path(__file__).parent.parent / ".local" / "test-logs"

# Settings of a topic that Kafka compacts within seconds.
EAGER = {
    "segment.ms": "1000",
    "segment.index.bytes": "65536",
    "min.cleanable.dirty.ratio": "0.0",
    "min.compaction.lag.ms": "0",
    "max.compaction.lag.ms": "1000",
    "file.delete.delay.ms": "1000",
}
FORGETFUL = EAGER | {"delete.retention.ms": "0"}  # compaction also removes tombstones and transaction markers


def chunk(chunk_id: str = "c1", text: str = "a text about sockets", version: int = 1, **more: Any) -> Chunk:
    return {"chunk_id": chunk_id, "doc_id": "d1", "text": text, "version": version, **more}


def vector(seed: int = 0, dimensions: int = DIMENSIONS) -> bytes:
    numbers = np.random.default_rng(seed).standard_normal(dimensions).astype("<f4")
    return pack(numbers / np.linalg.norm(numbers))


def expanded(chunk_id: str = "c1", text: str = "a text about sockets", version: int = 1, **more: Any) -> Expanded:
    provenance = {"model": "m", "revision": "r", "parameters": {}}
    return {
        **chunk(chunk_id, text, version),
        "text_sha256": sha256(text),
        "embedding_qwen": vector(len(chunk_id) + version),
        "embedding_provenance": provenance,
        "splade_terms": {"socket": 0.8, "...": 0.6},
        "splade_norm": 5.0,
        "splade_provenance": provenance,
        **more,
    }  # type: ignore[return-value]


def sparse_vector(terms: dict[str, float], norm: float) -> SparseVector:
    ids, weights = np.arange(len(terms), dtype=np.int32), np.array(list(terms.values()), "<f4")
    return SparseVector(ids, weights, norm, Vocabulary(list(terms)))


def record(value: Any, key: str | bytes | None = "c1", headers: Headers = (), timestamp: int = 1000) -> Record:
    data, vector = encode(value) if isinstance(value, Mapping) else (value, [])
    data = data if data is None or isinstance(data, bytes) else orjson.dumps(data)
    return Record("chunks", 0, 0, key.encode() if isinstance(key, str) else key, data, timestamp, (*headers, *vector))


async def send(settings: Settings, records: Iterable[tuple[bytes | None, bytes | None]]) -> None:
    """Publishes keys and values unchanged and unchecked."""
    async with clients.producer(settings) as producer:
        sent = [await producer.send(settings.topic, key=key, value=value) for key, value in records]
        await asyncio.gather(*sent)


async def forget_facets(stores: Stores, chunk_id: str) -> None:
    """Makes the chunk one that an earlier release stored."""
    await stores.neo4j._run("MATCH (c:Chunk {chunk_id: $name}) REMOVE c.facets, c.filterable", name=chunk_id)
    path = f"/{stores.opensearch._target}/_doc/{chunk_id}"
    source = (await stores.opensearch._call("GET", path))["_source"]
    del source["facets"]
    await stores.opensearch._call("PUT", path, body=source, refresh="true", version=1, version_type="external_gte")


def changed_properties(written: str, changes: Mapping[str, object]) -> str:
    """A configuration of Kafka with these values in place of its own."""
    kept = [line for line in written.splitlines() if line.partition("=")[0] not in changes]
    return "\n".join([*kept, *(f"{name}={value}" for name, value in changes.items())]) + "\n"


async def create_topics(settings: Settings, configs: Mapping[str, str]) -> None:
    """The topics of the flow as the product creates them, but with these settings for all except dead letters."""
    definitions = topics.definitions

    def changed(*args: Any) -> list[Any]:
        made = list(definitions(*args))
        for topic in made:
            if not topic.name.endswith(topics.DLQ):
                topic.topic_configs |= configs
        return made

    with patch.object(topics, "definitions", changed):
        await topics.create(settings)


@asynccontextmanager
async def transactional(settings: Settings, name: str, **options: Any) -> AsyncIterator[AIOKafkaProducer]:
    """A transactional producer; at its start Kafka aborts an open transaction of an earlier producer of this name."""
    async with AIOKafkaProducer(
        bootstrap_servers=settings.kafka_servers,
        transactional_id=name,
        **{"transaction_timeout_ms": 1000 * LONGEST, "max_request_size": settings.max_message_bytes} | options,
    ) as producer:
        yield producer


@asynccontextmanager
async def open_transaction(settings: Settings) -> AsyncIterator[AIOKafkaProducer]:
    """A producer with a transaction open."""
    async with transactional(settings, f"{settings.topic}-tx", transaction_timeout_ms=60_000) as producer:
        await producer.begin_transaction()
        yield producer


async def compacted(settings: Settings, topic: str) -> None:
    """Waits until compaction has left one record of each key and no tombstone, except the last key of each partition.

    Kafka compacts only closed segments, and closes a segment only when another record arrives. So the last record of
    each partition is published again until all records before it are compacted.
    """
    async with clients.producer(settings) as producer:

        async def cleaned() -> bool:
            records = await read(settings, topic)
            lasts = {record.partition: record for record in records}
            for last in lasts.values():
                await producer.send_and_wait(
                    topic, key=last.key, value=last.value, headers=list(last.headers), partition=last.partition
                )
            rest = [record for record in records if record.key != lasts[record.partition].key]
            return len({record.key for record in rest}) == len(rest) and all(record.value for record in rest)

        await until(cleaned, every=1)


async def until_compacted(settings: Settings, topic: str) -> None:
    """Waits until compaction has removed a record that was published since the call."""
    async with clients.admin(settings) as admin, clients.consumer(settings) as client:
        ends = await client.end_offsets(await clients.partitions(admin, [topic]))
    since = {tp.partition: end for tp, end in ends.items()}
    seen: set[tuple[int, int]] = set()

    async def removed() -> bool:
        now = {(record.partition, record.offset) async for record in reader.read_to_end(settings, topic, since)}
        seen.update(now)
        return bool(seen - now)

    await until(removed, every=1)


async def by_words(store: OpenSearchStore, words: str) -> list[str]:
    """The chunks that OpenSearch finds by words, the best first."""
    answer = await store.search(dsl.body([dsl.words(words)], None, 1000), await store.live())
    return [row.chunk_id for row in dsl.rows(answer)]


def names(write: Tombstone | dict) -> tuple[str, int]:
    """The chunk_id and the version of a decoded record."""
    return (write.chunk_id, write.version) if isinstance(write, Tombstone) else (write["chunk_id"], write["version"])


async def empty_neo4j(stores: Stores) -> None:
    """Call it before `set_up`: it also removes the live generation of an earlier test."""
    await stores.neo4j._run("MATCH (n) WHERE n:Chunk OR n:DeletedChunk OR n:ChunkGeneration DETACH DELETE n")


async def read(settings: Settings, topic: str) -> list[Record]:
    return [record async for record in reader.read_to_end(settings, topic)]


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = LONGEST, every: float = 0.2) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(every)


def wait_until(condition: Callable[[], bool]) -> None:
    """As `until`, for tests without an event loop."""
    deadline = time.monotonic() + LONGEST
    while not condition():
        assert time.monotonic() < deadline, "timeout: the condition never became true"
        time.sleep(0.02)


class Worker:
    """A worker in its own process. `script` runs it with a fault; the default is the product itself."""

    def __init__(self, stage: StageName, *script: str, port: int, **variables: str) -> None:
        LOGS.mkdir(parents=True, exist_ok=True)
        self.stage = stage
        self.url = f"http://127.0.0.1:{port}"
        self.log = LOGS / f"{os.environ['STREAM_TOPIC']}-{stage}.log"
        environment = os.environ | variables | {"STREAM_WEB_PORT": str(port)}
        path, *arguments = script or (None, "worker")
        self.process = Process([*arguments, stage], script=path, environment=environment, log=self.log)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.process.poll() is None:
            await self.end(signal.SIGKILL)

    async def end(self, number: int) -> int:
        """Sends a signal and returns the exit code."""
        self.process.send_signal(number)
        return await self.exit_code()

    async def exit_code(self, seconds: float = LONGEST) -> int:
        async with asyncio.timeout(seconds):
            return await asyncio.to_thread(self.process.wait)

    async def ready(self, seconds: float = LONGEST) -> None:
        async def answers() -> bool:
            if self.process.poll() is not None:
                log = self.log.read_text()[-2000:]
                raise AssertionError(f"{self.stage} ended with {self.process.returncode}:\n{log}")
            return (await self.get("/readyz"))[0] == 200

        await until(answers, seconds)

    async def in_the_middle(self, seconds: float = LONGEST) -> None:
        """Waits until the worker has finished some batches and is processing another."""

        async def busy() -> bool:
            metrics = await self.metrics()
            return metrics.get("stream_in_flight", 0) > 0 and metrics.get("stream_batch_size_count", 0) > 0

        await until(busy, seconds, every=0.005)

    async def metrics(self) -> dict[str, float]:
        """Samples by name, summed over their labels."""
        sums: dict[str, float] = {}
        for family in text_string_to_metric_families((await self.get("/metrics"))[1]):
            for sample in family.samples:
                sums[sample.name] = sums.get(sample.name, 0) + sample.value
        return sums

    async def get(self, path: str) -> tuple[int, str]:
        """Status and body of the response; status 0 without a response."""

        def get() -> tuple[int, str]:
            try:
                with urllib.request.urlopen(self.url + path, timeout=5) as answer:
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as error:
                return error.code, error.read().decode()
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                return 0, ""

        return await asyncio.to_thread(get)
