"""If these fail, the older of two concurrent writes wins: a chunk is lost, or a deleted chunk comes back."""

import asyncio
import itertools
import os
import random

import neo4j
import pytest
from races import STATE, apart, put, race
from support import until

from stream.records import Tombstone
from stream.stores.neo4j import ADOPT, DELETE, PUT, Neo4jStore, _row, _Schema

pytestmark = pytest.mark.servers

ROUNDS = int(os.environ.get("STREAM_TEST_RACE_ROUNDS", "40"))
KINDS = ("put", "delete")
VERSIONS = ((7, 10), (10, 7), (7, 7))
STARTS = ((), (("put", 5),), (("delete", 5),), (("put", 8),), (("delete", 8),))


@pytest.fixture
async def generations(settings):
    """A store of the first generation and one of the second, both empty."""
    mine = apart(settings)
    second = mine.model_copy(update={"generation": 2})
    async with Neo4jStore(mine) as one, Neo4jStore(second) as two:
        for store in (one, two):
            await store.set_up()
        await _empty(one)
        yield one, two
        await _empty(one)


async def _empty(store):
    await store._run("MATCH (n) WHERE n:Chunk OR n:DeletedChunk DETACH DELETE n")


def write(kind, chunk_id, version, text=""):
    return put(chunk_id, version, text) if kind == "put" else Tombstone(chunk_id, version)


async def begin(store, write):
    """A session, and its open transaction in which the write is done."""
    session = store._driver.session()
    transaction = await session.begin_transaction()
    if isinstance(write, Tombstone):
        statement, rows, names = DELETE, [{"chunk_id": write.chunk_id, "version": write.version}], {}
    else:
        names = _Schema(store._settings, store._settings.generation or 1).properties
        statement, rows = PUT, [_row(write, names)]
    await (await transaction.run(store._with_label(statement), rows=rows, **names)).consume()
    return session, transaction


async def waits(store, task):
    """Returns once the task waits for a lock, or has ended."""

    async def stuck():
        rows = await store._run("SHOW TRANSACTIONS YIELD status WHERE status STARTS WITH 'Blocked' RETURN status")
        return task.done() or bool(rows)

    await until(stuck, every=0.01)
    assert not task.done()


class Model:
    """The expected state of a chunk whose writers run one after another."""

    def __init__(self):
        self.version = self.text = self.deleted = None
        self.embedded = [None, None]

    def apply(self, kind, version, generation, text):
        if version < max(-1 if self.deleted is None else self.deleted, _or(self._guard(kind, generation))):
            return
        if kind == "delete":
            self.__init__()
            self.deleted = version
            return
        self.deleted, self.embedded[generation] = None, version
        if _or(self.version) <= version:
            self.version, self.text = version, text

    def _guard(self, kind, generation):
        return self.version if kind == "delete" else self.embedded[generation]


def _or(version):
    return -1 if version is None else version


@pytest.mark.parametrize(("first", "second"), [*itertools.product(KINDS, KINDS)])
async def test_a_write_waits_for_an_open_one_of_its_chunk_and_then_compares_with_it(generations, first, second):
    cases = itertools.product(VERSIONS, STARTS, (0, 1))
    for n, ((older, newer), start, other) in enumerate(cases):
        chunk_id, model = f"c{n}", Model()
        for kind, version in start:
            await generations[0].write([write(kind, chunk_id, version, "start")])
            model.apply(kind, version, 0, "start")
        session, transaction = await begin(generations[0], write(first, chunk_id, older, "first"))
        task = asyncio.create_task(generations[other].write([write(second, chunk_id, newer, "second")]))
        await waits(generations[0], task)
        await transaction.commit()
        await session.close()
        assert await task == {}
        model.apply(first, older, 0, "first")
        model.apply(second, newer, other, "second")
        (row,) = await generations[0]._run(STATE, chunk_ids=[chunk_id])
        found = {name: row[name] for name in ("version", "text", "deleted", "embedded", "created")}
        case = f"{start}, then {first} {older}, then {second} {newer} of generation {other + 1}"
        assert found == {**vars(model), "created": None}, case


async def test_writers_that_race_leave_each_chunk_at_its_highest_version(settings):
    await race(settings, ROUNDS, random.Random(0))


async def test_a_write_that_is_rolled_back_was_never_there(generations):
    session, transaction = await begin(generations[0], Tombstone("c", 9))
    task = asyncio.create_task(generations[0].write([put("c", 7, "seven")]))
    await waits(generations[0], task)
    await transaction.rollback()
    await session.close()
    assert await task == {}
    assert (await generations[0].stored(["c"]))["c"].version == 7


async def test_what_the_graph_knows_about_a_chunk_outlives_its_new_version(generations):
    store, _ = generations
    await store.write([put("c", 1, "one")])
    await store._run("MATCH (c:Chunk {chunk_id: 'c'}) SET c.mine = 1 CREATE (:Page {raced: true})-[:HAS]->(c)")
    await store.write([put("c", 2, "two")])
    (row,) = await store._run("MATCH (p:Page)-[:HAS]->(c:Chunk) RETURN c.version AS version, c.mine AS mine")
    assert (row["version"], row["mine"]) == (2, 1)
    await store._run("MATCH (p:Page {raced: true}) DETACH DELETE p")


async def test_a_node_that_is_no_chunk_yet_stays_when_its_name_is_deleted_and_an_older_version_cannot_come(generations):
    store, _ = generations
    await store._run("CREATE (:Chunk {chunk_id: 'c', mine: 1})")
    await store.write([Tombstone("c", 5)])
    await store.write([put("c", 4, "four")])
    (row,) = await store._run("MATCH (c:Chunk {chunk_id: 'c'}) RETURN properties(c) AS found")
    assert row["found"] == {"chunk_id": "c", "mine": 1}


async def test_a_chunk_of_an_earlier_version_that_is_written_while_it_is_adopted_keeps_the_new_version(generations):
    store, _ = generations
    await store.write([put("c", 5, "five")])
    await store._run("MATCH (c:Chunk) REMOVE c.embedded_version, c.embedding_provenance")
    session, transaction = await begin(store, put("c", 10, "ten"))
    task = asyncio.create_task(store._sweep(ADOPT))
    await waits(store, task)
    await transaction.commit()
    await session.close()
    await task
    (row,) = await store._run(STATE, chunk_ids=["c"])
    assert (row["version"], row["embedded"], row["text"]) == (10, [10, None], "ten")


async def test_writers_with_the_same_chunks_in_other_orders_do_not_deadlock(generations, monkeypatch):
    """A row waits only for a row of the same chunk_id."""
    store, _ = generations
    retried = []
    monkeypatch.setattr(neo4j.exceptions.TransientError, "is_retryable", lambda self: retried.append(self) or True)
    names = [f"c{n}" for n in range(100)]
    for version in range(1, 6):
        writes = [put(name, version, "text") for name in names]
        assert await asyncio.gather(*(store.write(writes[::step]) for step in (1, -1, 1, -1))) == [{}] * 4
    assert retried == []
