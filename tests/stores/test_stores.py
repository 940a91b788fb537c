"""If these fail, a store loses a chunk, keeps a wrong one, or does not find it."""

import asyncio
import contextlib
import itertools
import json
from collections.abc import Awaitable, Callable

import pytest
from prometheus_client import REGISTRY
from pydantic import SecretStr
from support import DIMENSIONS, LONGEST, by_words, expanded

from stream.errors import ConfigurationError, Outage
from stream.records import Position, Tombstone
from stream.search import dsl
from stream.stores import Stores, neo4j, open_stores
from stream.stores.base import Origin, Put, Shown, Stored, require_version
from stream.stores.neo4j import Neo4jStore
from stream.stores.opensearch import FIELDS, OpenSearchStore
from stream.vectors import unpack

pytestmark = pytest.mark.servers


@pytest.fixture(params=["neo4j", "opensearch"])
def store(request, stores: Stores):
    return getattr(stores, request.param)


def put(chunk_id="c1", text="a text about sockets", version=1, **more):
    chunk = expanded(chunk_id, text, version, **more)
    return Put(chunk, unpack(chunk["embedding_qwen"]))


def stored(write: Put) -> Stored:
    return Stored(write.version, write.chunk["text_sha256"], complete=True)


async def shown(store, *chunk_ids) -> dict[str, Stored]:
    """What the store shows of these chunks to searchers."""
    return {name: found for name, found in (await store.stored(chunk_ids)).items() if found.text_sha256}


async def test_what_is_written_is_there_and_writing_it_again_changes_nothing(store):
    first, second = put("a"), put("b", facet_json={"k": {"n": 1}}, table_lines=["x"], metadata={"m": [1, "a", None]})
    for _ in range(2):
        assert await store.write([first, second]) == {}
        assert await store.stored(["a", "b", "missing"]) == {"a": stored(first), "b": stored(second)}
        assert await store.count() == 2


WRITES = {
    "put 1": put("c", "one", 1),
    "put 2": put("c", "two", 2),
    "delete 3": Tombstone("c", 3),
    "put 4": put("c", "four", 4),
}


@pytest.mark.parametrize("newest", [2, 3, 4])
async def test_the_higher_version_wins_in_whatever_order_they_come(store, newest):
    writes = list(WRITES.values())[:newest]
    for order in itertools.permutations(writes):
        chunk_ids = f"c{order}"
        for write in order:
            name = _named(write, str(hash(chunk_ids)))
            assert await store.write([name]) == {}
        found = (await shown(store, name.chunk_id)).get(name.chunk_id)
        assert found == (None if newest == 3 else stored(writes[-1]))


def _named(write, chunk_id):
    if isinstance(write, Tombstone):
        return Tombstone(chunk_id, write.version)
    return Put({**write.chunk, "chunk_id": chunk_id}, write.vector)


async def test_of_equal_versions_the_later_wins(store):
    await store.write([put("c", "old", 5)])
    await store.write([new := put("c", "new", 5)])
    assert await store.stored(["c"]) == {"c": stored(new)}
    await store.write([Tombstone("c", 5)])
    assert await shown(store, "c") == {}
    await store.write([new])
    assert await store.stored(["c"]) == {"c": stored(new)}


async def test_a_chunk_says_what_it_was_made_by_and_from_which_record(store):
    """The position is that of the record that was written last; it changes nothing else."""
    place = Position("chunks.expanded", 1, 2**40)
    await store.write([first := put("c", version=3, position=place), put("without"), put("gone"), Tombstone("gone", 1)])
    made = first.chunk["embedding_provenance"]
    assert await store.origin("c", 1) == Origin(3, made, place)
    assert await store.origin("without", 1) == Origin(1, made, None)
    assert await store.origin("gone", 1) is await store.origin("never", 1) is None
    assert (await store.stored(["c"]))["c"] == stored(first)
    await store.write([put("c", version=2, position=Position("chunks.expanded", 0, 1))])
    assert await store.origin("c", 1) == Origin(3, made, place)
    await store.write([put("c", version=3, position=Position("chunks.expanded", 1, 0))])
    assert await store.origin("c", 1) == Origin(3, made, Position("chunks.expanded", 1, 0))
    assert (await store.shown(["c"], 1))["c"] == Shown("c", "d1", 3, "a text about sockets", None, None)


async def test_a_delete_holds_after_opensearch_has_forgotten_its_deleted_documents(stores, settings):
    """Otherwise a record that is replayed a day later restores a deleted chunk."""
    index = f"/{settings.opensearch_alias}-1"
    await stores.opensearch._call("PUT", f"{index}/_settings", body={"index": {"gc_deletes": "0ms"}})
    for write in [put("c", version=2), Tombstone("c", 3), Tombstone("never seen", 3)]:
        await stores.opensearch.write([write])
    await stores.opensearch._call("POST", f"{index}/_forcemerge", max_num_segments="1")
    await stores.opensearch.write([put("c", version=2), put("never seen", version=2)])
    assert await shown(stores.opensearch, "c", "never seen") == {}
    assert await stores.opensearch.count() == 0
    assert await by_words(stores.opensearch, "sockets") == []


async def test_an_index_of_an_earlier_version_learns_to_remember_deletes(settings):
    async with OpenSearchStore(settings) as store:
        body = {"mappings": {"dynamic": "strict", "properties": FIELDS}, "aliases": {settings.opensearch_alias: {}}}
        await store._call("PUT", f"/{settings.opensearch_alias}-1", body=body)
        await store.set_up()
        assert await store.write([Tombstone("c", 3), put("d", position=Position("expanded", 0, 1))]) == {}
        assert await store.count() == 1
        await store._call("DELETE", f"/{settings.opensearch_alias}-1")


async def test_numbers_that_a_timestamp_outranks_are_told(stores, caplog):
    """Without the warning the producer assumes that it has replaced the chunk."""
    await stores.opensearch.write([Tombstone("c", 1_795_000_000_000)])
    await stores.opensearch.write([put("d", version=5)])
    assert caplog.messages == []
    await stores.opensearch.write([put("c", version=6), put("d", version=4)])
    (message,) = caplog.messages
    assert "version 6 of 'c' is not applied" in message


async def test_deleting_what_is_not_there_is_fine(store):
    assert await store.write([Tombstone("never", 1)]) == {}
    assert await store.count() == 0


@pytest.mark.parametrize("chunk_id", ["字" * 512, "with / and % and \"quotes' and ` and 🜚", "-", "_x", "."])
async def test_any_legal_name_works(store, chunk_id):
    await store.write([write := put(chunk_id)])
    assert await store.stored([chunk_id]) == {chunk_id: stored(write)}
    await store.write([Tombstone(chunk_id, 2)])
    assert await shown(store, chunk_id) == {}


async def test_chunks_are_counted_by_what_made_their_vectors(stores):
    """An operator sees a mixed index here, and not only by bad hits."""
    other = {"model": "other", "revision": "r", "parameters": {"k": 1}}
    mixed = [put("a"), put("b"), put("c", embedding_provenance=other, splade_provenance=other), Tombstone("d", 1)]
    for store in stores.both:
        await store.write(mixed)
        await store.count()  # refreshes: OpenSearch counts only refreshed documents
        assert {json.loads(origin)["model"]: n for origin, n in (await store.origins()).items()} == {"m": 2, "other": 1}


async def test_generations_do_not_see_each_other(stores, settings):
    second = settings.model_copy(update={"generation": 2})
    async with open_stores(second) as new:
        await new.set_up()
        for old, store in zip(stores.both, new.both, strict=True):
            await old.write([put("a", version=3), put("b")])
            await store.write([put("a", version=2), put("c")])
            assert set(await old.stored(["a", "b", "c"])) == {"a", "b"}
            assert set(await store.stored(["a", "b", "c"])) == {"a", "c"}
            assert (await old.count(), await store.count()) == (2, 2)
            await store.drop(2)
            assert (await store.count(), await old.count()) == (0, 2)


async def test_what_neo4j_shows_is_said_of_a_chunk_and_whether_the_generation_s_vector_is_of_it(stores, settings):
    """The generations share a node's text: searches in one generation show what another generation's worker wrote."""
    old, second = stores.neo4j, settings.model_copy(update={"generation": 2})
    async with Neo4jStore(second) as new:
        await new.set_up()
        await new.write([put("a", "new", 2), put("b", "new", 1)])
        await old.write([put("a", "old", 1), old_b := put("b", "old", 1), put("c"), Tombstone("d", 7)])
        digest = put("a", "new", 2).chunk["text_sha256"]
        assert await old.stored(["a"]) == {"a": Stored(2, digest, complete=False)}
        assert await new.stored(["a"]) == {"a": Stored(2, digest, complete=True)}
        assert await old.stored(["b"]) == {"b": stored(old_b)}
        assert await new.stored(["b", "c"]) == {"b": Stored(1, old_b.chunk["text_sha256"], complete=False)}
        assert await new.stored(["d"]) == await old.stored(["d"]) == {"d": Stored(7, None, complete=True)}
        await old._run("MATCH (c:Chunk {chunk_id: 'c'}) SET c.embedding_qwen = [1.0]")
        assert not (await old.stored(["c"]))["c"].complete
        await new.drop(2)


def outranked(store) -> float:
    return REGISTRY.get_sample_value("stream_outranked_total", {"store": store.name}) or 0


async def test_writes_that_a_higher_version_outranks_are_counted(stores):
    before = outranked(stores.neo4j)
    await stores.neo4j.write([put("a", version=5), put("b", version=5), Tombstone("c", 5), Tombstone("d", 5)])
    await stores.neo4j.write([put("a", version=5), put("b", version=6), Tombstone("c", 5)])
    assert outranked(stores.neo4j) == before
    await stores.neo4j.write([put("a", version=4), Tombstone("b", 5), put("c", version=4), Tombstone("d", 4)])
    assert outranked(stores.neo4j) == before + 4


async def test_a_node_of_which_no_model_is_known_is_not_compared_with_a_vector(stores, caplog):
    writes = [put(chunk_id) for chunk_id in "abc"]
    await stores.neo4j.write(writes)
    await stores.neo4j._run("MATCH (c:Chunk {chunk_id: 'b'}) REMOVE c.embedding_provenance")
    await stores.neo4j._run("MATCH (c:Chunk {chunk_id: 'c'}) SET c.embedding_provenance = ''")
    provenance = writes[0].chunk["embedding_provenance"]
    assert [hit.chunk_id for hit in await stores.neo4j.nearest(writes[0].vector, 3, provenance)] == ["a"]
    assert "2 of the 3 nearest chunks are left out" in caplog.text


async def test_a_delete_that_neo4j_refuses_is_refused_alone(stores):
    too_long = "x" * 10_000  # longer than a key of Neo4j's indexes
    await stores.neo4j.write([put("a"), put("b")])
    refused = await stores.neo4j.write([Tombstone("a", 2), Tombstone(too_long, 2), Tombstone("b", 2)])
    assert list(refused) == [too_long]
    assert refused[too_long].reason == "refused-by-neo4j"
    assert await shown(stores.neo4j, "a", "b") == {}


async def test_a_provenance_that_is_too_long_for_neo4j_s_index_is_refused_alone(stores):
    endless = {"model": "m" * 10_000, "revision": "r", "parameters": {}}
    refused = await stores.neo4j.write([put("a"), put("b", embedding_provenance=endless), put("c")])
    assert {name: rejected.reason for name, rejected in refused.items()} == {"b": "refused-by-neo4j"}
    assert set(await stores.neo4j.stored(["a", "b", "c"])) == {"a", "c"}


async def plan(store, statement: str) -> set[str]:
    """The operators of Neo4j's query plan."""
    answer = await store._driver.execute_query(f"EXPLAIN {statement}", after="", limit=1, nothing={})
    plans, found = [answer.summary.plan], set()
    while plans:
        one = plans.pop()
        found.add(one["operatorType"].split("@")[0])
        plans += one.get("children", [])
    return found


async def test_counting_reads_an_index_and_no_node(stores, monkeypatch):
    await stores.neo4j.write([put(f"c{n}") for n in range(5)])
    await stores.neo4j._run("CALL db.awaitIndexes(60)")
    statements = []
    run = stores.neo4j._run

    async def spy(statement, **parameters):
        statements.append(statement)
        return await run(statement, **parameters)

    monkeypatch.setattr(stores.neo4j, "_run", spy)
    assert await stores.neo4j.count() == 5
    assert list((await stores.neo4j.origins()).values()) == [5]
    assert await stores.neo4j.unfiltered() == 0
    for statement in statements:
        if statement not in (neo4j.LIVE, neo4j.INDEX):
            operators = await plan(stores.neo4j, statement)
            assert "NodeIndexScan" in operators
            assert not operators & {"NodeByLabelScan", "AllNodesScan", "Filter"}


async def test_sweeping_over_all_chunks_reads_each_once(stores, settings, monkeypatch):
    for statement in (neo4j.ADOPT, neo4j.FORGET):
        operators = await plan(stores.neo4j, statement)
        assert "NodeUniqueIndexSeekByRange" in operators
        assert not operators & {"NodeByLabelScan", "AllNodesScan", "Sort", "Top"}
    async with Neo4jStore(settings.model_copy(update={"generation": 2})) as store:
        await store.set_up()
        await store.write([put(f"c{n}") for n in range(5)])
        monkeypatch.setattr(neo4j, "NODES_AT_ONCE", 2)
        pages = []
        run = store._run

        async def dies_once(statement, **parameters):
            if statement == neo4j.FORGET:
                pages.append(parameters["after"])
                if len(pages) == 2:
                    raise Outage("killed")
            return await run(statement, **parameters)

        monkeypatch.setattr(store, "_run", dies_once)
        with pytest.raises(Outage):
            await store.drop(2)
        assert await store.count() == 3
        await store.drop(2)
        assert pages == ["", "c1", "", "c1", "c3", "c4"]
        assert await store.stored([f"c{n}" for n in range(5)]) == {}


async def test_chunks_of_an_earlier_version_belong_to_the_first_generation(stores):
    """Earlier releases wrote no `embedded_version`; still earlier ones wrote no provenance either."""
    await stores.neo4j.write([put("a", version=3), put("b")])
    await stores.neo4j._run("MATCH (c:Chunk) REMOVE c.embedded_version, c.embedding_provenance")
    await stores.neo4j._run("CREATE (:Chunk {embedding_qwen: [1.0], version: 1, mine: true})")
    await stores.neo4j._run("DROP INDEX chunk_embedded_version")
    await stores.neo4j.set_up()
    assert await stores.neo4j.count() == 2
    assert await stores.neo4j.origins() == {"": 2}
    assert (await stores.neo4j.stored(["a"]))["a"].version == 3
    (row,) = await stores.neo4j._run("MATCH (c:Chunk {mine: true}) RETURN size(keys(c)) AS n")
    assert row["n"] == 3


async def test_chunks_of_somebody_else_are_left_alone_under_another_label(stores, settings):
    chunks = stores.neo4j
    await chunks._run("CREATE (:Chunk {chunk_id: 'a', version: 9, text: 'theirs'})")
    mine = settings.model_copy(update={"neo4j_label": "Passage", "neo4j_index": "passage_idx"})
    async with Neo4jStore(mine) as store:
        await store.set_up()
        await store.set_up()
        write = put("a")
        assert await store.write([write, Tombstone("b", 2), put("c")]) == {}
        assert await store.stored(["a"]) == {"a": stored(write)}
        assert (await store.count(), await chunks.count()) == (2, 0)
        origin = write.chunk["embedding_provenance"]
        assert {hit.chunk_id for hit in await store.nearest(write.vector, 5, origin)} == {"a", "c"}
        await store.go_live(1)
        assert await store.live() == 1
        labels = await store._run("MATCH (n) UNWIND labels(n) AS label RETURN DISTINCT label")
        assert {row["label"] for row in labels} >= {"Chunk", "Passage", "DeletedPassage", "PassageGeneration"}
        (row,) = await store._run("MATCH (n) WHERE n:DeletedChunk OR n:ChunkGeneration RETURN count(n) AS n")
        assert row["n"] == 2
        await store.drop(1)
        assert [row["text"] for row in await chunks._run("MATCH (c:Chunk) RETURN c.text AS text")] == ["theirs"]
        await store._run("MATCH (n) WHERE n:Chunk OR n:DeletedChunk OR n:ChunkGeneration DETACH DELETE n")


async def test_a_label_or_an_index_of_somebody_else_is_a_matter_of_settings(stores, settings):
    await stores.neo4j._run("CREATE INDEX foreign_names IF NOT EXISTS FOR (n:Foreign) ON (n.chunk_id)")
    async with Neo4jStore(settings.model_copy(update={"neo4j_label": "Foreign"})) as store:
        with pytest.raises(ConfigurationError, match="STREAM_NEO4J_LABEL"):
            await store.set_up()
    async with Neo4jStore(settings.model_copy(update={"neo4j_label": "Other"})) as store:
        with pytest.raises(ConfigurationError, match="STREAM_NEO4J_INDEX"):  # the index is over :Chunk
            await store.set_up()


async def test_a_constraint_of_somebody_else_with_our_name_is_a_matter_of_settings(stores, settings):
    """Neo4j then skips ours without an error; without it two writers could create two nodes of one chunk."""
    await stores.neo4j._run("CREATE CONSTRAINT taken_id IF NOT EXISTS FOR (n:Stranger) REQUIRE n.number IS UNIQUE")
    async with Neo4jStore(settings.model_copy(update={"neo4j_label": "Taken"})) as store:
        with pytest.raises(ConfigurationError, match="STREAM_NEO4J_LABEL"):
            await store.set_up()


class Freezing:
    """A proxy of Neo4j that can stop answering with open connections, like a server after SIGSTOP."""

    def __init__(self, uri: str) -> None:
        self._host, port = uri.removeprefix("bolt://").split(":")
        self._port = int(port)
        self._thawed = asyncio.Event()
        self._thawed.set()

    async def __aenter__(self) -> "Freezing":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.uri = f"bolt://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    def freeze(self) -> None:
        self._thawed.clear()

    def thaw(self) -> None:
        self._thawed.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection(self._host, self._port)
        await asyncio.gather(self._pass(reader, upstream_writer), self._pass(upstream_reader, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(2**16):
                await self._thawed.wait()
                writer.write(data)
                await writer.drain()
        writer.close()


CALLS: dict[str, Callable[[Neo4jStore], Awaitable[object]]] = {
    "write": lambda store: store.write([put("a")]),
    "delete": lambda store: store.write([Tombstone("a", 1)]),
    "count": lambda store: store.count(),
    "stored": lambda store: store.stored(["a"]),
    "examine": lambda store: store.examine(),
    "set_up": lambda store: store.set_up(),
    "drop": lambda store: store.drop(2),
}


@pytest.mark.parametrize("call", CALLS)
async def test_a_neo4j_that_hangs_is_an_outage(stores, settings, call):
    """The driver waits for an answer without a timeout."""
    async with Freezing(settings.neo4j_uri) as server:
        mine = settings.model_copy(update={"neo4j_uri": server.uri, "store_timeout": 2})
        async with Neo4jStore(mine) as store, Neo4jStore(mine) as fresh:
            async with asyncio.timeout(LONGEST):
                await store.live()
                server.freeze()
                for each in (store, fresh):
                    with pytest.raises(Outage, match="has not answered for 2 s"):
                        await CALLS[call](each)
            server.thaw()
            assert await store.write([Tombstone("a", 2)]) == {}
            server.freeze()


async def test_a_vector_is_compared_with_those_of_its_own_model_only(stores, caplog):
    origin = {"model": "m", "revision": "1", "parameters": {"dimensions": 4096, "long_texts": "reject"}}
    others = [
        origin | {"model": "n"},
        origin | {"revision": "2"},
        origin | {"parameters": {"dimensions": 1024}},
        {"model": "m", "revision": "1", "parameters": {}},
    ]
    truncated = origin | {"parameters": {"dimensions": 4096, "long_texts": "truncate"}}
    writes = [put(f"c{n}", embedding_provenance=each) for n, each in enumerate([origin, truncated, *others])]
    await stores.neo4j.write(writes)
    assert {hit.chunk_id for hit in await stores.neo4j.nearest(writes[0].vector, 6, origin)} == {"c0", "c1"}
    assert "4 of the 6 nearest chunks are left out" in caplog.text


async def test_a_vector_finds_its_chunk(stores):
    writes = [put(f"c{'x' * i}", f"text {i}", i) for i in range(1, 20)]
    await stores.neo4j.write(writes)
    hits = await stores.neo4j.nearest(writes[7].vector, 3, writes[7].chunk["embedding_provenance"])
    assert hits[0].chunk_id == writes[7].chunk_id
    assert hits[0].cosine == pytest.approx(1, abs=1e-6)


async def test_terms_find_their_chunk_also_those_with_a_dot(stores):
    await stores.opensearch.write(
        [put("a", "one", splade_terms={"...": 0.9}), put("b", "two", splade_terms={"x": 0.5})]
    )
    await stores.opensearch.count()
    body = dsl.body([dsl.terms({"...": 2.0, "unknown": 1.0}, normalised=True)], None, 10)
    (row,) = dsl.rows(await stores.opensearch.search(body, 1))
    assert (row.chunk_id, row.score) == ("a", pytest.approx(2.0 * 0.9 * expanded()["splade_norm"], rel=0.01))


async def test_words_find_their_chunk_in_every_form(stores):
    await stores.opensearch.write([put("a", "listening sockets"), put("b", "parsers", splade_terms={})])
    await stores.opensearch.count()
    assert await by_words(stores.opensearch, "socket listens") == ["a"]


async def test_a_document_that_opensearch_refuses_is_refused_alone(stores):
    refused = await stores.opensearch.write([put("a"), put("b", splade_terms={"x": -1.0}), put("c")])
    assert list(refused) == ["b"]
    assert refused["b"].reason == "refused-by-opensearch"
    assert sorted(await stores.opensearch.stored(["a", "b", "c"])) == ["a", "c"]


async def test_an_index_that_takes_no_writes_is_an_outage_and_nobody_s_fault(stores, settings):
    path = f"/{settings.opensearch_alias}/_settings"
    await stores.opensearch._call("PUT", path, body={"index.blocks.write": True})
    with pytest.raises(Outage):
        await stores.opensearch.write([put("a")])
    await stores.opensearch._call("PUT", path, body={"index.blocks.write": False})
    assert await stores.opensearch.write([put("a")]) == {}


async def test_a_vector_that_neo4j_refuses_is_refused_alone(stores):
    wrong = Put(expanded("b"), unpack(b""))
    refused = await stores.neo4j.write([put("a"), wrong, put("c")])
    assert list(refused) == ["b"]
    assert sorted(await stores.neo4j.stored(["a", "b", "c"])) == ["a", "c"]


async def test_items_that_neo4j_refuses_in_both_transactions_of_a_write_are_refused_alone(stores):
    wrong = [Put(expanded(chunk_id), unpack(b"")) for chunk_id in ("a", "d")]
    refused = await stores.neo4j.write([wrong[0], put("b"), put("c"), wrong[1]])
    assert set(refused) == {"a", "d"}
    assert set(await stores.neo4j.stored(["a", "b", "c", "d"])) == {"b", "c"}


async def test_a_write_to_neo4j_ends_when_both_its_transactions_have_ended(stores, monkeypatch):
    """A transaction that is still in progress could overtake the retry."""
    transaction = stores.neo4j._put

    async def put_unless_down(schema, puts):
        if puts[0].chunk_id == "a":
            raise Outage("down")
        return await transaction(schema, puts)

    monkeypatch.setattr(stores.neo4j, "_put", put_unless_down)
    with pytest.raises(Outage):
        await stores.neo4j.write([put("a"), put("b")])
    assert set(await stores.neo4j.stored(["a", "b"])) == {"b"}


async def test_no_text_is_in_the_log_of_neo4j_s_driver(stores, caplog):
    with caplog.at_level("DEBUG", "neo4j"):
        await stores.neo4j.write([put("a", "a text that nobody may read")])
    assert "rows" in caplog.text
    assert "nobody" not in caplog.text


async def test_another_number_of_dimensions_is_noticed_at_the_start(stores, settings):
    async with Neo4jStore(settings.model_copy(update={"embed_dimensions": 1024})) as store:
        with pytest.raises(ConfigurationError, match=f"{DIMENSIONS} dimensions"):
            await store.set_up()


@pytest.mark.parametrize(("quantised", "said"), [(True, "quantised"), (False, "not quantised")])
async def test_a_new_vector_index_has_the_options_of_the_settings(stores, settings, quantised, said):
    options = {"neo4j_hnsw_m": 24, "neo4j_hnsw_ef_construction": 150, "neo4j_quantization": quantised}
    name = {"neo4j_index": "optioned_idx", "neo4j_label": "Optioned"}
    async with Neo4jStore(settings.model_copy(update=options | name)) as store:
        await store.set_up()
        try:
            assert (await store.examine()).endswith(f"{DIMENSIONS} dimensions, M 24, ef_construction 150, {said}")
        finally:
            await store.drop(1)


async def test_searches_and_writes_work_where_the_driver_routes_them(stores, settings):
    routed = settings.neo4j_uri.replace("bolt://", "neo4j://")
    async with Neo4jStore(settings.model_copy(update={"neo4j_uri": routed})) as store:
        await store.write([put("a"), put("b")])
        made = put("a").chunk["embedding_provenance"]
        found = await store.nearest(put("a").vector, 1, made)
        assert [near.chunk_id for near in found] == ["a"]
        assert (await store.cosines(put("b").vector, ["b"], 1))["b"] == pytest.approx(1, abs=1e-3)


async def test_the_index_stands_behind_an_alias_so_that_another_can_take_its_place(stores, settings):
    alias = settings.opensearch_alias
    assert list(await stores.opensearch._call("GET", f"/_alias/{alias}")) == [f"{alias}-1"]
    await stores.opensearch.set_up()
    assert list(await stores.opensearch._call("GET", f"/_alias/{alias}")) == [f"{alias}-1"]


async def test_an_index_with_other_fields_is_noticed_at_the_start_and_not_by_dead_letters(stores, settings):
    other = f"{settings.opensearch_alias}-foreign"
    mappings = {"dynamic": "strict", "properties": {"chunk_id": {"type": "keyword"}}}
    await stores.opensearch._call("PUT", f"/{other}", body={"mappings": mappings})
    async with OpenSearchStore(settings.model_copy(update={"opensearch_alias": other})) as store:
        with pytest.raises(ConfigurationError, match="STREAM_OPENSEARCH_ALIAS"):
            await store.set_up()
    await stores.opensearch._call("DELETE", f"/{other}")


@pytest.mark.parametrize("password", [SecretStr("wrong"), None])
async def test_a_wrong_password_is_a_matter_of_settings_and_none_is_wrong_too(settings, password):
    """The local profile's Neo4j requires a password."""
    async with Neo4jStore(settings.model_copy(update={"neo4j_password": password})) as store:
        with pytest.raises(ConfigurationError, match="STREAM_NEO4J_PASSWORD") as error:
            await store.count()
    assert "wrong" not in str(error.value)


async def test_what_a_record_says_is_never_part_of_a_query(stores, monkeypatch):
    """Otherwise the writer of a chunk can inject Cypher."""
    evil = "'\"`}) DETACH DELETE (n) //"
    queries = []
    execute = stores.neo4j._execute

    async def spy(query, *arguments):
        queries.append(query)
        return await execute(query, *arguments)

    monkeypatch.setattr(stores.neo4j, "_execute", spy)
    write = put(evil, evil, doc_id=evil, facet_json={evil: evil}, metadata={evil: evil}, table_lines=[evil])
    bystander = put("bystander")
    assert await stores.neo4j.write([write, bystander]) == {}
    assert await stores.neo4j.stored([evil]) == {evil: stored(write)}
    (hit,) = await stores.neo4j.nearest(write.vector, 1, write.chunk["embedding_provenance"])
    assert hit.chunk_id == hit.doc_id == evil
    assert await stores.neo4j.shown([evil], 1) == {evil: Shown(evil, evil, 1, evil, {evil: evil}, {evil: evil})}
    assert await stores.neo4j.write([Tombstone(evil, 2)]) == {}
    assert set(queries) == {neo4j.LIVE, neo4j.PUT, neo4j.STORED, neo4j.NEAREST, neo4j.SHOWN, neo4j.DELETE}
    assert await stores.neo4j.stored(["bystander"]) == {"bystander": stored(bystander)}


async def test_a_store_that_is_down_is_an_outage(settings):
    down = settings.model_copy(update={"neo4j_uri": "bolt://127.0.0.1:1", "opensearch_url": "http://127.0.0.1:1"})
    async with open_stores(down) as stores:
        for store in stores.both:
            with pytest.raises(Outage):
                await store.count()


@pytest.mark.parametrize("writes", [[put("a")], [Tombstone("a", 1)]], ids=["put", "tombstone"])
async def test_a_closed_index_is_an_outage_and_nobody_s_fault(stores, settings, writes):
    """OpenSearch answers 400 for each document, the same as for a bad document."""
    path = f"/{settings.opensearch_alias}-1"
    await stores.opensearch._call("POST", f"{path}/_close")
    with pytest.raises(Outage, match="closed"):
        await stores.opensearch.write(writes)
    await stores.opensearch._call("POST", f"{path}/_open")
    assert await stores.opensearch.write(writes) == {}


async def test_an_index_that_was_changed_under_the_worker_is_an_outage_and_nobody_s_fault(stores, settings):
    index = f"/{settings.opensearch_alias}-1"
    await stores.opensearch._call("PUT", f"{index}/_settings", body={"index.default_pipeline": "gone"})
    with pytest.raises(Outage, match="gone"):
        await stores.opensearch.write([put("a")])
    await stores.opensearch._call("PUT", f"{index}/_settings", body={"index.default_pipeline": "_none"})

    other = {"mappings": {"dynamic": "strict"}, "aliases": {settings.opensearch_alias: {"is_write_index": True}}}
    await stores.opensearch._call("PUT", f"/{settings.opensearch_alias}-2", body=other)
    with pytest.raises(Outage, match="mapping set to strict"):
        await stores.opensearch.write([put("a")])
    await stores.opensearch._call("DELETE", f"/{settings.opensearch_alias}-2")
    assert await stores.opensearch.write([put("a")]) == {}
    assert await stores.opensearch.count() == 1


@pytest.mark.parametrize("writes", [[put("a")], [Tombstone("a", 1)]], ids=["put", "tombstone"])
async def test_an_index_that_is_gone_is_an_outage_and_opensearch_makes_no_other(stores, settings, writes):
    """OpenSearch would create one with guessed field types, in which no search finds a term."""
    await stores.opensearch._call("DELETE", f"/{settings.opensearch_alias}-1")
    with pytest.raises(Outage, match="index_not_found"):
        await stores.opensearch.write(writes)
    await stores.opensearch.set_up()
    assert await stores.opensearch.write(writes) == {}


@pytest.mark.parametrize(
    ("version", "oldest"), [("5.26.30", "5.26"), ("5.27-aura", "5.26"), ("2025.10.1", "5.26"), ("10.0.0", "2.19")]
)
def test_a_newer_server_will_do(version, oldest):
    require_version("it", version, oldest)


@pytest.mark.parametrize(("version", "oldest"), [("5.9.0", "5.26"), ("4.4.38", "5.26"), ("2.3.0", "2.19")])
def test_an_older_server_is_refused(version, oldest):
    with pytest.raises(ConfigurationError, match="update it"):
        require_version("it", version, oldest)
