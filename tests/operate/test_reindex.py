"""If these fail, a reindex loses chunks, disturbs searches, or cannot be rolled back."""

import asyncio
import json
import os
import subprocess
import sys
from base64 import b64encode
from contextlib import AsyncExitStack, asynccontextmanager

import orjson
import pytest
from ports import free_ports
from processes import child
from support import LONGEST, Worker, chunk, forget_facets, read, send, until
from typer.testing import CliRunner

from stream import children
from stream.cli import app
from stream.config import STAGES
from stream.kafka import clients, topics
from stream.models.embeddings import EmbeddingClient
from stream.operate import reindex
from stream.operate.reindex import NotClean, for_generation, generations
from stream.operate.status import caught_up
from stream.operate.verify import verify
from stream.records import VECTOR_HEADER, header
from stream.search.request import Request
from stream.search.searcher import Searcher
from stream.stores import open_stores

pytestmark = pytest.mark.servers

COUNT = 200
MODES = ("lexical", "dense")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The workers of a reindex start at once, but for those of the command line."""
    monkeypatch.setattr(children, "worker", child)


@asynccontextmanager
async def workers(*stages):
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(Worker(stage, port=port))
            for stage, port in zip(stages, free_ports(len(stages)), strict=True)
        ]


async def publish(settings, numbers, version=1):
    chunks = [chunk(f"c{n}", f"text number {n} of version {version} about sockets", version) for n in numbers]
    await send(settings, [(one["chunk_id"].encode(), orjson.dumps(one)) for one in chunks])


@pytest.fixture
async def filled(flow, stores):
    """A live generation of some chunks; no worker runs."""
    await publish(flow, range(COUNT))
    async with workers(*STAGES):
        await caught_up(flow)
    yield flow
    for generation in await generations(flow):
        await stores.neo4j.drop(generation.number)
    await stores.neo4j._run("MATCH (n:ChunkGeneration) DELETE n")


async def hits(settings):
    """The number of chunks that lexical and dense searches find."""
    async with open_stores(settings) as stores, EmbeddingClient(settings) as embedder:
        searcher = Searcher(settings, stores, embedder)
        asked = [Request(query="sockets", mode=mode, k=1000, strict=True, deadline=LONGEST) for mode in MODES]
        return {request.mode: len((await searcher.search(request)).hits) for request in asked}


async def as_earlier_releases_wrote(settings, stores):
    """The vectors are in the records' JSON, and the stores have nothing for filters."""
    topic = topics.source(settings, "index")
    async with clients.producer(settings) as producer:
        for record in await read(settings, topic):
            vector = b64encode(header(record.headers, VECTOR_HEADER)).decode()
            value = orjson.dumps(orjson.loads(record.value) | {VECTOR_HEADER: vector})
            await producer.send(topic, key=record.key, value=value)
        await producer.flush()
    await asyncio.gather(*(forget_facets(stores, f"c{n}") for n in range(COUNT)))


async def test_what_an_earlier_release_wrote_can_be_filtered_after_a_reindex(filled, stores):
    await as_earlier_releases_wrote(filled, stores)
    assert [await store.unfiltered() for store in stores.both] == [COUNT, COUNT]
    async with workers(*STAGES):
        assert await reindex.start(filled) == 2
    condition = {"field": "doc_id", "equal": "d1"}
    asked = [Request(query="sockets", mode=mode, k=1000, filter=condition, deadline=LONGEST) for mode in MODES]
    async with open_stores(filled) as renewed, EmbeddingClient(filled) as embedder:
        searcher = Searcher(filled, renewed, embedder)
        assert [len((await searcher.search(request)).hits) for request in asked] == [COUNT, COUNT]
        assert [await store.unfiltered() for store in renewed.both] == [0, 0]


async def test_a_new_generation_becomes_live_while_records_come_and_can_be_taken_back(filled):
    before = await hits(filled)
    async with workers(*STAGES):
        started = asyncio.create_task(reindex.start(filled))
        for n in range(COUNT, COUNT + 50):
            await publish(filled, [n])
            await publish(filled, [n - COUNT], version=2)
        fewest = dict(before)
        while not started.done():
            now = await hits(filled)
            fewest = {mode: min(fewest[mode], now[mode]) for mode in now}
        assert await started == 2
        assert fewest == before
        assert [(g.number, g.live) for g in await generations(filled)] == [(1, False), (2, True)]
        await caught_up(filled)
        assert (await hits(filled))["lexical"] == COUNT + 50
        async with open_stores(filled) as stores:
            assert (await verify(filled, stores, wait=30)).clean
        await publish(filled, range(20), version=3)
        await caught_up(filled)
        assert await reindex.rollback(filled) == 1
        async with open_stores(filled) as stores:
            assert (await verify(filled, stores, wait=30)).clean
    assert [(g.number, g.live) for g in await generations(filled)] == [(1, True), (2, False)]


async def test_killed_again_and_again_it_goes_on_where_it_was(filled):
    async def begun() -> bool:
        return len(await generations(filled)) > 1

    for moment in range(4):
        process = command("start")
        if moment:
            await until(begun)
            await asyncio.sleep(moment * 0.7)  # to kill it at different steps
        process.kill()
        await asyncio.to_thread(process.wait)
    process = command("start")
    assert await asyncio.to_thread(process.wait, 200) == 0
    assert [(g.number, g.live) for g in await generations(filled)] == [(1, False), (2, True)]
    async with open_stores(filled) as stores:
        assert (await verify(filled, stores)).clean


def command(*arguments):
    return subprocess.Popen([sys.executable, "-m", "stream", "reindex", *arguments], env=os.environ)


async def test_an_incomplete_generation_does_not_become_live(filled, monkeypatch):
    monkeypatch.setattr(reindex, "VERIFY_WAIT", 0)
    await reindex.start(filled, swap_too=False)
    async with open_stores(for_generation(filled, 2)) as stores:
        await stores.opensearch._call("DELETE", f"/{filled.opensearch_alias}-2/_doc/c0")
    with pytest.raises(NotClean, match="c0: OpenSearch does not have it"):
        await reindex.swap(filled, 2)
    assert [g.number for g in await generations(filled) if g.live] == [1]
    assert await reindex.drop(filled, lambda one, live: one.number > live) == [2]
    assert [g.number for g in await generations(filled)] == [1]
    async with open_stores(filled) as stores:
        assert (await verify(filled, stores)).clean


async def test_a_swap_that_died_between_the_stores_is_finished(filled, stores):
    await reindex.start(filled, swap_too=False)
    await stores.neo4j.go_live(2)
    async with workers(*STAGES):  # workers write to both generations
        await publish(filled, range(10), version=2)
        await caught_up(filled)
        await reindex.swap(filled, 2)
    assert [g.number for g in await generations(filled) if g.live] == [2]
    assert (await verify(filled, stores)).clean
    assert await reindex.rollback(filled) == 1
    assert (await verify(filled, stores)).clean


async def test_pruned_generations_leave_nothing_behind(filled, stores):
    assert await reindex.start(filled) == 2
    assert await reindex.drop(filled, lambda one, live: one.number < live) == [1]
    (row,) = await stores.neo4j._run("MATCH (c:Chunk) WHERE c.embedding_qwen IS NOT NULL RETURN count(c) AS n")
    assert row["n"] == 0
    assert (await verify(filled, stores)).clean
    assert (await hits(filled))["dense"] > 0


async def test_another_model_has_a_flow_of_its_own(filled, stores, monkeypatch):
    monkeypatch.setenv("STREAM_EMBED_REVISION", "new")
    monkeypatch.setenv("STREAM_FLOW", "new")
    new = filled.model_copy(update={"flow": "new", "embed_revision": "new"})
    assert await reindex.start(new) == 2
    async with open_stores(new) as theirs:
        assert (await verify(new, theirs)).clean
    assert (await verify(filled, stores)).clean
    assert await hits(new) == await hits(filled)
    assert [(g.number, g.flow, g.live) for g in await generations(filled)] == [(1, "", True), (2, "new", True)]
    again = len(await read(new, topics.source(new, "expand")))
    async with workers(*STAGES):  # they continue where the reindex has ended
        await publish(new, [0], version=9)
        await caught_up(new)
    assert len(await read(new, topics.source(new, "expand"))) == again + 1


async def test_the_command_lists_what_there_is_and_how_far_each_has_come(filled):
    await reindex.start(filled, swap_too=False)
    await publish(filled, [0], version=2)
    async with workers("embed", "expand"):
        await caught_up(filled, ["embed", "expand"])
    found = await asyncio.to_thread(CliRunner().invoke, app, ["reindex", "status", "--json"])
    live = {
        "neo4j_index": filled.neo4j_index,
        "opensearch_index": f"{filled.opensearch_alias}-1",
        "opensearch_alias": filled.opensearch_alias,
    }
    assert json.loads(found.stdout) == [
        {"number": 1, "flow": "", "live": True, "live_in": ["Neo4j", "OpenSearch"], "swapping": False, "lag": 1} | live,
        {"number": 2, "flow": "", "live": False, "live_in": [], "swapping": False, "lag": 1} | dict.fromkeys(live),
    ]
    nothing = await asyncio.to_thread(CliRunner().invoke, app, ["reindex", "prune"])
    assert nothing.stdout == "there is nothing to delete\n"
