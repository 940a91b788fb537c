"""If these fail, unchanged texts cost GPU time again, or a chunk gets a vector that is not its own."""

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager

import orjson
import pytest
from ports import free_ports
from support import Worker, chunk, expanded, send

from stream.config import STAGES
from stream.errors import ConfigurationError
from stream.operate import replay
from stream.operate.status import caught_up
from stream.stages import reuse
from stream.stages.reuse import Reuse, open_reuse
from stream.stores.base import Put
from stream.vectors import unpack

pytestmark = pytest.mark.servers

PROVENANCE = {"model": "m", "revision": "r", "parameters": {"dimensions": 4096, "long_texts": "reject"}}


def put(chunk_id, text):
    made = expanded(chunk_id, text, embedding_provenance=PROVENANCE)
    return Put(made, unpack(made["embedding_qwen"]))


@pytest.mark.parametrize(
    ("asked", "provenance", "known"),
    [
        (chunk("a", "one"), PROVENANCE, True),
        (chunk("a", "one", version=9, metadata={"new": True}), PROVENANCE, True),
        (chunk("a", "two"), PROVENANCE, False),
        (chunk("b", "one"), PROVENANCE, False),
        (chunk("a", "one"), PROVENANCE | {"model": "other"}, False),
        (chunk("a", "one"), PROVENANCE | {"revision": "other"}, False),
        (chunk("a", "one"), PROVENANCE | {"parameters": {"dimensions": 4096, "long_texts": "truncate"}}, False),
    ],
)
async def test_the_same_text_of_the_same_model_has_the_same_vector(stores, asked, provenance, known):
    await stores.neo4j.write([written := put("a", "one"), put("c", "three")])
    found = await Reuse(stores.neo4j, provenance)([asked, chunk("c", "changed")])
    assert found == [written.chunk["embedding_qwen"] if known else None, None]


@pytest.mark.parametrize(
    "damage",
    [
        "SET c.embedding_qwen = [x IN c.embedding_qwen | -x]",
        "SET c.embedding_qwen = c.embedding_qwen[..100]",
        "REMOVE c.embedding_qwen",
        "SET c.embedding_sha256 = 'other'",
    ],
)
async def test_a_damaged_vector_is_found_and_made_anew(stores, caplog, damage):
    await stores.neo4j.write([put("a", "one")])
    await stores.neo4j._run(f"MATCH (c:Chunk {{chunk_id: 'a'}}) {damage}")
    assert await Reuse(stores.neo4j, PROVENANCE)([chunk("a", "one")]) == [None]
    assert "'a' is not what was written" in caplog.text


async def test_while_neo4j_is_down_texts_are_new_and_it_is_left_alone_for_a_while(settings, caplog):
    down = settings.model_copy(update={"neo4j_uri": "bolt://127.0.0.1:1"})
    clock = iter([0.0, 0.0, 29.0, 31.0, 31.0])
    async with open_reuse(down, PROVENANCE) as known:
        known._clock = lambda: next(clock)
        for messages in (1, 1, 2):
            assert await known([chunk("a")]) == [None]
            assert caplog.text.count("embedded again") == messages


async def test_a_neo4j_that_hangs_costs_a_moment(stores, monkeypatch, caplog):
    monkeypatch.setattr(reuse, "PATIENCE", 0.01)
    monkeypatch.setattr(stores.neo4j, "vectors", lambda *_: asyncio.sleep(60))
    assert await Reuse(stores.neo4j, PROVENANCE)([chunk("a")]) == [None]
    assert "Neo4j does not answer" in caplog.text


async def test_a_neo4j_that_does_not_let_us_in_is_told_at_the_start(settings):
    wrong = settings.model_copy(update={"neo4j_password": None})
    with pytest.raises(ConfigurationError, match="STREAM_NEO4J_PASSWORD"):
        async with open_reuse(wrong, PROVENANCE):
            pass


@asynccontextmanager
async def workers():
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(Worker(stage, port=port))
            for stage, port in zip(STAGES, free_ports(3), strict=True)
        ]


async def test_a_replay_of_an_unchanged_corpus_asks_the_model_for_nothing(flow, stores):
    chunks = [chunk(f"c{n}", f"text number {n}") for n in range(150)]
    await send(flow, [(one["chunk_id"].encode(), orjson.dumps(one)) for one in chunks])
    async with workers() as (embed, *_):
        await caught_up(flow)
        before = await embed.metrics()
        planned = await replay.plan(flow, "embed", replay.Range())
        assert await replay.publish_again(flow, "embed", planned) == len(chunks)
        changed = chunk("c0", "another text", version=2)
        await send(flow, [(b"c0", orjson.dumps(changed))])
        await caught_up(flow)
        after = await embed.metrics()
    assert after["embed_reused_total"] - before["embed_reused_total"] == len(chunks)
    assert after["embed_batch_size_sum"] - before["embed_batch_size_sum"] == 1
    assert (await stores.neo4j.stored(["c0"]))["c0"].version == 2
