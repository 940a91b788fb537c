"""If these fail, an interrupted swap, rollback or deletion damages a generation that searches use.

The workers of a generation run in this process: they read the whole topic once and commit its end.
"""

import asyncio
from contextlib import asynccontextmanager

import numpy as np
import orjson
import pytest
from aiokafka.errors import CommitFailedError
from support import by_words, chunk, expanded, send
from typer.testing import CliRunner

from stream.cli import app
from stream.errors import ConfigurationError, StreamError
from stream.kafka import clients, topics
from stream.operate import reindex
from stream.operate.reindex import Accepted, OlderVersions, SwapUnfinished, for_generation, generations, unfinished
from stream.operate.status import status
from stream.records import Tombstone
from stream.stages.reuse import open_reuse
from stream.stores import LiveIndexes, open_stores
from stream.stores.base import NoGeneration, Put
from stream.stores.neo4j import Neo4jStore
from stream.stores.opensearch import OpenSearchStore

pytestmark = pytest.mark.servers

DIMENSIONS = 8
CHUNKS = [f"c{n}" for n in range(4)]
PROVENANCE = {"model": "m", "revision": "r", "parameters": {}}
WRITES = [  # all changes of persistent state
    (clients, "commit"),
    (OpenSearchStore, "claim"),
    (Neo4jStore, "go_live"),
    (OpenSearchStore, "go_live"),
    (Neo4jStore, "swapped"),
    (Neo4jStore, "drop"),
    (Neo4jStore, "_sweep"),  # the second half of Neo4j's `drop` and of a worker's set-up
    (OpenSearchStore, "drop"),
]


async def swap_to_the_newest(settings):
    await reindex.swap(settings, (await generations(settings))[-1].number)


COMMANDS = {
    "start": reindex.start,
    "swap": swap_to_the_newest,
    "rollback": reindex.rollback,
    "abort": lambda settings: reindex.drop(settings, lambda one, live: one.number > live),
    "prune": lambda settings: reindex.drop(settings, lambda one, live: one.number < live),
}
FOLLOWING = ("start", "abort", "prune", "rollback")  # one of them runs after each kill; `swap` is what mends


class Killed(Exception):
    """Stands for kill -9: the command does nothing after it."""


@pytest.fixture
def settings(settings, monkeypatch):
    """Short vectors, which need their own node label and vector index."""
    own = {"embed_dimensions": DIMENSIONS, "neo4j_label": "Swapped", "neo4j_index": "swapped_idx"}
    for name, value in own.items():
        monkeypatch.setenv(f"STREAM_{name.upper()}", str(value))
    return settings.model_copy(update=own)


def put(chunk_id, version=1):
    vector = np.eye(DIMENSIONS, dtype=np.float32)[int(chunk_id[1:]) % DIMENSIONS]
    return Put(expanded(chunk_id, f"the text {version} of {chunk_id}", version), vector)


async def publish(settings, puts):
    """Publishes chunks as a producer does."""
    chunks = [chunk(one.chunk_id, one.chunk["text"], one.version) for one in puts]
    await send(settings, [(one["chunk_id"].encode(), orjson.dumps(one)) for one in chunks])


@pytest.fixture
async def filled(flow, stores, monkeypatch):
    """A live generation of some chunks; workers run in this process."""
    commit = clients.commit
    puts = [put(name) for name in CHUNKS]
    await publish(flow, puts)
    await stores.neo4j._run("MATCH (n:ChunkGeneration) DELETE n")
    for store in stores.both:
        await store.write(puts)

    async def commit_ends(settings, stage):
        async with clients.consumer(settings) as client, clients.admin(settings) as admin:
            partitions = await clients.partitions(admin, [topics.source(settings, stage)])
            await commit(settings, topics.group(settings, stage), await client.end_offsets(partitions))

    await commit_ends(flow, "index")

    @asynccontextmanager
    async def workers(mine, stages, assignments):
        async with open_stores(mine) as own:
            await own.set_up()
            for store in own.both:
                await store.write(puts)
        for stage in stages:
            await commit_ends(mine, stage)
        yield

    monkeypatch.setattr(reindex, "_workers", workers)
    monkeypatch.setattr(reindex, "VERIFY_WAIT", 0)
    yield flow
    for generation in await generations(flow):
        await stores.neo4j.drop(generation.number)
    await stores.neo4j._run("MATCH (n:ChunkGeneration) DELETE n")


@pytest.fixture
def killed(monkeypatch):
    """Runs a command and kills it after so many writes (None: never); returns whether it was killed."""
    left = [None]

    def counted(write):
        async def call(*arguments, **named):
            if left[0] == 0:
                raise Killed
            if left[0] is not None:
                left[0] -= 1
            return await write(*arguments, **named)

        return call

    for owner, name in WRITES:
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))

    async def run(command, writes):
        left[0] = writes
        try:
            await command
        except Killed:
            return True
        finally:
            left[0] = None
        return False

    return run


async def searched(settings):
    """The number of chunks that each store finds in its live generation."""
    async with open_stores(settings) as stores:
        await stores.opensearch.count()
        return (
            len(await stores.neo4j.nearest(np.ones(DIMENSIONS, np.float32), 100, PROVENANCE)),
            len(await by_words(stores.opensearch, "text")),
        )


async def check(settings):
    """Every live generation is complete, and searches find all chunks."""
    assert await searched(settings) == (len(CHUNKS), len(CHUNKS))
    for generation in await generations(settings):
        if generation.live:
            async with open_stores(for_generation(settings, generation.number)) as stores:
                await stores.answer()
                for store in stores.both:
                    assert len(await store.stored(CHUNKS)) == len(CHUNKS)


async def seen(settings):
    return [(g.number, sorted(g.live_in), g.swapping) for g in await generations(settings)]


async def mended(settings):
    """Other commands change no live generation and name the command that finishes the swap; that command works."""
    found = await generations(settings)
    swap_to = unfinished(settings.flow, found)
    if swap_to is not None:
        before = await seen(settings)
        for name in FOLLOWING:
            with pytest.raises(SwapUnfinished, match=f"`stream reindex swap {swap_to}`"):
                await COMMANDS[name](settings)
        assert await seen(settings) == before
        await reindex.swap(settings, swap_to)
        assert [(g.number, g.swapping) for g in await generations(settings) if g.live] == [(swap_to, False)]
    assert unfinished(settings.flow, await generations(settings)) is None
    await check(settings)


@pytest.mark.parametrize("command", list(COMMANDS))
async def test_killed_anywhere_a_command_costs_nothing_that_is_live(filled, killed, command):
    writes, died = 0, True
    while died:
        # One generation is live; another is complete, and was live before if the command needs that.
        await reindex.drop(filled, lambda one, live: True)
        if command != "start":
            await reindex.start(filled, swap_too=command in ("rollback", "prune"))
        died = await killed(COMMANDS[command](filled), writes)
        await check(filled)
        await mended(filled)
        try:
            await COMMANDS[FOLLOWING[writes % len(FOLLOWING)]](filled)
        except ConfigurationError as error:
            assert "there is no older generation" in str(error)
        await check(filled)
        assert unfinished(filled.flow, await generations(filled)) is None
        writes += 1
    assert writes > 2


async def test_a_swap_that_died_is_named_by_status(filled, killed):
    await reindex.start(filled, swap_too=False)
    assert await killed(reindex.swap(filled, 2), 2)
    found = await asyncio.to_thread(CliRunner().invoke, app, ["reindex", "status"])
    assert "live in OpenSearch only" in found.stdout
    assert "live in Neo4j only" in found.stdout
    assert "`stream reindex swap 2` finishes it" in found.stdout
    found = await asyncio.to_thread(CliRunner().invoke, app, ["reindex", "status", "--json"])
    assert [(one["number"], one["live_in"], one["swapping"]) for one in orjson.loads(found.stdout)] == [
        (1, ["OpenSearch"], False),
        (2, ["Neo4j"], True),
    ]
    assert [one["opensearch_index"] for one in orjson.loads(found.stdout)] == [f"{filled.opensearch_alias}-1", None]
    assert [one["neo4j_index"] for one in orjson.loads(found.stdout)] == [None, f"{filled.neo4j_index}_2"]


async def test_a_client_that_reads_the_names_finds_what_is_live_before_and_after_a_swap(filled):
    alias, name = filled.opensearch_alias, filled.neo4j_index
    await reindex.start(filled, swap_too=False)
    async with open_stores(filled) as stores:
        for swap_to, names in ((None, (f"{alias}-1", name)), (2, (f"{alias}-2", f"{name}_2"))):
            if swap_to:
                await reindex.swap(filled, swap_to)
            live = (await stores.live_indexes())[""]
            assert live == LiveIndexes(alias, *names)
            assert list(await stores.opensearch._call("GET", f"/{alias}/_alias")) == [live.opensearch_index]
            query = "CALL db.index.vector.queryNodes($index, 100, $near) YIELD node RETURN count(*) AS n"
            (row,) = await stores.neo4j._run(query, index=live.neo4j_index, near=[1.0] * DIMENSIONS)
            assert row["n"] == len(CHUNKS)


async def test_a_flow_that_is_live_in_one_store_has_the_name_of_that_index_only(filled):
    other = filled.model_copy(update={"flow": "other"})
    async with open_stores(for_generation(other, 2)) as stores:
        await stores.opensearch.claim()
        assert set(await stores.live_indexes()) == {""}
        await stores.neo4j.go_live(2)
        alias = f"{filled.opensearch_alias}.other"
        assert (await stores.live_indexes())["other"] == LiveIndexes(alias, None, f"{filled.neo4j_index}_2")


async def test_a_swap_that_ends_within_another_says_so(filled, monkeypatch):
    await reindex.start(filled, swap_too=False)
    go_live, pending = OpenSearchStore.go_live, [1]

    async def overtaken(store, number):
        while pending:
            await reindex.swap(filled, pending.pop())
        await go_live(store, number)

    monkeypatch.setattr(OpenSearchStore, "go_live", overtaken)
    with pytest.raises(SwapUnfinished, match="swap 1`"):
        await reindex.swap(filled, 2)
    await mended(filled)


async def test_two_flows_that_reindex_at_once_have_a_generation_each(filled):
    other = filled.model_copy(update={"flow": "other"})
    await topics.create(other)
    numbers = await asyncio.gather(*(reindex._claimed(flow) for flow in (filled, other, filled, other)))
    assert sorted(set(numbers)) == [2, 3]  # two calls of one flow build one generation
    assert {(g.number, g.flow) for g in await generations(filled)} == {
        (1, ""),
        (numbers[0], ""),
        (numbers[1], "other"),
    }
    async with open_stores(for_generation(filled, numbers[1])) as stores:
        with pytest.raises(ConfigurationError, match="of the flow other, not of the flow without a name"):
            await stores.set_up()


async def test_a_deleted_generation_is_not_one_that_has_become_live(filled):
    number = await reindex.start(filled, swap_too=False)
    async with open_stores(filled) as stores:
        await stores.neo4j.go_live(number)
        with pytest.raises(StreamError, match="has become live"):
            await stores.drop(number)
    await check(filled)


async def test_a_generation_that_somebody_builds_is_not_deleted(filled, monkeypatch):
    number = await reindex.start(filled, swap_too=False)

    async def refused(*_):
        raise CommitFailedError

    monkeypatch.setattr(clients, "commit", refused)
    hasty = filled.model_copy(update={"session_timeout": 0.1, "drain_timeout": 0.1})
    with pytest.raises(ConfigurationError, match="has members"):
        await COMMANDS["abort"](hasty)
    assert [g.number for g in await generations(filled)] == [1, number]


async def test_what_the_topic_no_longer_has_does_not_go_back_unless_told(filled, stores):
    newer = put("c1", version=7)  # the topic has version 1: it came before and compaction took it
    async with open_stores(filled) as live:
        await live.neo4j.write([newer])
        await live.opensearch.write([newer, Tombstone("c2", 8)])
    with pytest.raises(
        OlderVersions, match=r"of 2 chunks.*c1 \(version 7 would be 1\), c2 \(version 8 would be 1\).*--accept-older"
    ):
        await reindex.start(filled)
    assert [g.number for g in await generations(filled) if g.live] == [1]
    for accepted in (Accepted(["c1"]), Accepted(["c2"])):
        with pytest.raises(OlderVersions, match="of 1 chunks"):
            await reindex.swap(filled, 2, accepted=accepted)
    await reindex.swap(filled, 2, accepted=Accepted(older=True))
    assert [g.number for g in await generations(filled) if g.live] == [2]


async def test_what_is_still_on_its_way_does_not_count_as_older(filled, stores, monkeypatch):
    await reindex.start(filled, swap_too=False)
    async with open_stores(filled) as live, open_stores(for_generation(filled, 2)) as mine:
        await live.opensearch.write([put("c1", version=2)])

        async def pass_end():
            await mine.opensearch.write([put("c1", version=2)])

        await reindex._require_nothing_older(filled, 2, (), pass_end)


async def test_a_flow_without_a_generation_has_no_known_vectors_and_says_what_makes_one(flow, stores):
    new = flow.model_copy(update={"flow": "new"})
    await topics.create(new)
    async with open_reuse(new, PROVENANCE) as known:
        assert await known([chunk("c1")]) == [None]
    async with open_stores(new) as theirs:
        for store in theirs.both:
            assert await store.count() == 0
            assert await store.origins() == {}
            assert "`stream reindex start`" in await store.examine()
        assert (await status(new, theirs)).stores == {"Neo4j": 0, "OpenSearch": 0}
        with pytest.raises(NoGeneration, match="`stream reindex start`"):
            await by_words(theirs.opensearch, "text")
        with pytest.raises(NoGeneration, match="`stream reindex start`"):
            await theirs.neo4j.nearest(np.ones(DIMENSIONS, np.float32), 10, PROVENANCE)
    assert await reindex.lag(flow, (await generations(flow))[0]) == 0


async def test_generations_are_listed_though_a_flow_has_lost_its_topics(flow, stores):
    async with open_stores(for_generation(flow.model_copy(update={"flow": "gone"}), 2)) as theirs:
        await theirs.opensearch.claim()
    assert [await reindex.lag(flow, one) for one in await generations(flow)] == [0, None]
