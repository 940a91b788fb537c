"""Writers that race over the same chunks in Neo4j: two of the live generation and one of generation 2."""

import asyncio
import random
from collections.abc import Sequence
from contextlib import AsyncExitStack

from support import expanded

from stream.config import Settings
from stream.records import Tombstone, sha256
from stream.stores.base import Put
from stream.stores.neo4j import Neo4jStore
from stream.vectors import unpack

DIMENSIONS = 8
CHUNKS = 4  # few, so that the writers meet
VERSIONS = (1, 2, 3, 4)

STATE = """
UNWIND $chunk_ids AS chunk_id
OPTIONAL MATCH (chunk:Chunk {chunk_id: chunk_id})
OPTIONAL MATCH (gone:DeletedChunk {chunk_id: chunk_id})
RETURN chunk_id, gone.version AS deleted, chunk.version AS version, chunk.text AS text, chunk.created AS created,
       [chunk.embedded_version, chunk.embedded_version_2] AS embedded,
       [chunk.text_sha256, chunk.text_sha256_2] AS digests
"""


def apart(settings: Settings) -> Settings:
    """Settings whose chunks have short vectors, and a label and an index of their own, apart from other tests."""
    return settings.model_copy(
        update={"neo4j_label": "Raced", "neo4j_index": "raced_idx", "embed_dimensions": DIMENSIONS}
    )


def put(chunk_id: str, version: int, text: str) -> Put:
    chunk = expanded(chunk_id, text, version)
    return Put(chunk, unpack(chunk["embedding_qwen"])[:DIMENSIONS])


async def race(settings: Settings, rounds: int, rng: random.Random) -> None:
    """In each round, every writer writes every version of a few chunks, in its own order.

    Raises `AssertionError` unless each chunk ends at its highest version, in the node and in both generations' own
    properties. Leaves nothing behind but constraints and indexes.
    """
    async with AsyncExitStack() as stack:
        stores = [
            await stack.enter_async_context(Neo4jStore(apart(settings).model_copy(update={"generation": generation})))
            for generation in (1, 1, 2)
        ]
        await stores[0].set_up()
        await stores[2].set_up()
        for n in range(rounds):
            wanted = {f"raced-{n}-{i}": _history(f"raced-{n}-{i}", rng) for i in range(CHUNKS)}
            await asyncio.gather(*(_write(store, wanted.values(), rng) for store in stores))
            for row in await stores[0]._run(STATE, chunk_ids=list(wanted)):
                last, found = wanted[row["chunk_id"]][-1], dict(row)
                assert found == _end(last), f"the highest write was {last}"
        await stores[0]._run("MATCH (n) WHERE n:Chunk OR n:DeletedChunk DETACH DELETE n")


def _history(chunk_id: str, rng: random.Random) -> list[Put | Tombstone]:
    """The writes of a chunk by version."""
    return [
        put(chunk_id, version, f"version {version}") if rng.random() < 0.6 else Tombstone(chunk_id, version)
        for version in VERSIONS
    ]


async def _write(store: Neo4jStore, histories: Sequence[list[Put | Tombstone]], rng: random.Random) -> None:
    orders = [rng.sample(history, len(history)) for history in histories]
    for writes in zip(*orders, strict=True):
        assert await store.write(rng.sample(writes, len(writes))) == {}


def _end(last: Put | Tombstone) -> dict[str, object]:
    nothing = {"deleted": None, "version": None, "text": None, "created": None, "embedded": [None] * 2}
    if isinstance(last, Tombstone):
        return nothing | {"chunk_id": last.chunk_id, "deleted": last.version, "digests": [None] * 2}
    text = last.chunk["text"]
    own = {"embedded": [last.version] * 2, "digests": [sha256(text)] * 2}
    return nothing | {"chunk_id": last.chunk_id, "version": last.version, "text": text} | own
