"""If these fail, a store loses a chunk, keeps a wrong one, or does not find it."""

import itertools
import json

import pytest
from pydantic import SecretStr
from support import expanded

from stream.errors import ConfigurationError, Outage
from stream.models.embeddings import unpack
from stream.records import Tombstone
from stream.stores import Stores, neo4j, open_stores
from stream.stores.base import Put, Stored, require_version
from stream.stores.neo4j import Neo4jStore
from stream.stores.opensearch import FIELDS, OpenSearchStore

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
    """What the store shows to searchers of these chunks."""
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


async def test_a_delete_holds_after_opensearch_has_forgotten_its_deleted_documents(stores, settings):
    """Else a record that is replayed a day later brings a deleted chunk back."""
    index = f"/{settings.opensearch_alias}-1"
    await stores.opensearch._call("PUT", f"{index}/_settings", body={"index": {"gc_deletes": "0ms"}})
    for write in [put("c", version=2), Tombstone("c", 3), Tombstone("never seen", 3)]:
        await stores.opensearch.write([write])
    await stores.opensearch._call("POST", f"{index}/_forcemerge", max_num_segments="1")
    await stores.opensearch.write([put("c", version=2), put("never seen", version=2)])
    assert await shown(stores.opensearch, "c", "never seen") == {}
    assert await stores.opensearch.count() == 0
    assert await stores.opensearch.search("sockets", {"socket": 1.0}, 10) == []


async def test_an_index_of_an_earlier_version_learns_to_remember_deletes(settings):
    async with OpenSearchStore(settings) as store:
        body = {"mappings": {"dynamic": "strict", "properties": FIELDS}, "aliases": {settings.opensearch_alias: {}}}
        await store._call("PUT", f"/{settings.opensearch_alias}-1", body=body)
        await store.set_up()
        assert await store.write([Tombstone("c", 3), put("d")]) == {}
        assert await store.count() == 1
        await store._call("DELETE", f"/{settings.opensearch_alias}-1")


async def test_numbers_that_a_timestamp_outranks_are_told(stores, caplog):
    """Its producer thinks that it has replaced the chunk."""
    await stores.opensearch.write([Tombstone("c", 1_795_000_000_000)])
    await stores.opensearch.write([put("d", version=5)])
    assert caplog.messages == []
    await stores.opensearch.write([put("c", version=6), put("d", version=4)])
    (message,) = caplog.messages
    assert "version 6 of 'c' changes nothing" in message


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
    """A mixed index is seen, and not guessed from bad hits."""
    other = {"model": "other", "revision": "r", "parameters": {"k": 1}}
    mixed = [put("a"), put("b"), put("c", embedding_provenance=other, splade_provenance=other), Tombstone("d", 1)]
    for store in stores.both:
        await store.write(mixed)
        await store.count()  # OpenSearch counts what it has refreshed
        assert {json.loads(origin)["model"]: n for origin, n in (await store.origins()).items()} == {"m": 2, "other": 1}


async def test_generations_do_not_see_each_other(stores, settings):
    second = settings.model_copy(update={"generation": 2})
    async with open_stores(second) as new:
        await new.set_up()
        for old, store in zip(stores.both, new.both, strict=True):
            await old.write([put("a", version=3), put("b")])
            await store.write([put("a", version=2), put("c")])
            assert {i: s.version for i, s in (await old.stored(["a", "b", "c"])).items()} == {"a": 3, "b": 1}
            assert {i: s.version for i, s in (await store.stored(["a", "b", "c"])).items()} == {"a": 2, "c": 1}
            assert (await old.count(), await store.count()) == (2, 2)
            await store.drop(2)
            assert (await store.count(), await old.count()) == (0, 2)


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
    assert hits[0].score == pytest.approx(1, abs=1e-3)


async def test_terms_find_their_chunk_also_those_with_a_dot(stores):
    await stores.opensearch.write(
        [put("a", "one", splade_terms={"...": 0.9}), put("b", "two", splade_terms={"x": 0.5})]
    )
    await stores.opensearch.count()
    (hit,) = await stores.opensearch.search("", {"...": 2.0, "unknown": 1.0}, 10)
    assert (hit.chunk_id, hit.score) == ("a", pytest.approx(1.8, rel=0.01))


async def test_words_find_their_chunk_in_every_form(stores):
    await stores.opensearch.write([put("a", "listening sockets"), put("b", "parsers", splade_terms={})])
    await stores.opensearch.count()
    assert [hit.chunk_id for hit in await stores.opensearch.search("socket listens", {}, 10)] == ["a"]


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
    wrong = Put(expanded("b"), unpack(""))
    refused = await stores.neo4j.write([put("a"), wrong, put("c")])
    assert list(refused) == ["b"]
    assert sorted(await stores.neo4j.stored(["a", "b", "c"])) == ["a", "c"]


async def test_another_number_of_dimensions_is_noticed_at_the_start(stores, settings):
    async with Neo4jStore(settings.model_copy(update={"embed_dimensions": 1024})) as store:
        with pytest.raises(ConfigurationError, match="4096 dimensions"):
            await store.set_up()


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
    """The local profile's Neo4j lets nobody in without one."""
    async with Neo4jStore(settings.model_copy(update={"neo4j_password": password})) as store:
        with pytest.raises(ConfigurationError, match="STREAM_NEO4J_PASSWORD") as error:
            await store.count()
    assert "wrong" not in str(error.value)


async def test_what_a_record_says_is_never_part_of_a_query(stores, monkeypatch):
    """Else whoever writes a chunk could write Cypher."""
    evil = "'\"`}) DETACH DELETE (n) //"
    queries = []
    run = stores.neo4j._run

    async def spy(query, **parameters):
        queries.append(query)
        return await run(query, **parameters)

    monkeypatch.setattr(stores.neo4j, "_run", spy)
    write = put(evil, evil, doc_id=evil, facet_json={evil: evil}, metadata={evil: evil}, table_lines=[evil])
    bystander = put("bystander")
    assert await stores.neo4j.write([write, bystander]) == {}
    assert await stores.neo4j.stored([evil]) == {evil: stored(write)}
    (hit,) = await stores.neo4j.nearest(write.vector, 1, write.chunk["embedding_provenance"])
    assert hit.text == evil
    assert await stores.neo4j.write([Tombstone(evil, 2)]) == {}
    assert set(queries) == {neo4j.LIVE, neo4j.PUT, neo4j.STORED, neo4j.NEAREST, neo4j.DELETE}
    assert await stores.neo4j.stored(["bystander"]) == {"bystander": stored(bystander)}


async def test_a_store_that_is_down_is_an_outage(settings):
    down = settings.model_copy(update={"neo4j_uri": "bolt://127.0.0.1:1", "opensearch_url": "http://127.0.0.1:1"})
    async with open_stores(down) as stores:
        for store in stores.both:
            with pytest.raises(Outage):
                await store.count()


@pytest.mark.parametrize("writes", [[put("a")], [Tombstone("a", 1)]], ids=["put", "tombstone"])
async def test_a_closed_index_is_an_outage_and_nobody_s_fault(stores, settings, writes):
    """OpenSearch answers 400 for each document, as it does for one that is wrong."""
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
    """OpenSearch would make one whose fields are guessed, in which no term would ever be found."""
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
