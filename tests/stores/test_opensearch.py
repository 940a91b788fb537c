"""If these fail, `stream verify` compares with outdated contents of OpenSearch."""

import pytest
from prometheus_client import REGISTRY
from support import expanded

from stream.errors import Outage
from stream.records import Tombstone
from stream.stores.base import Put, Stored
from stream.stores.opensearch import OpenSearchStore
from stream.vectors import unpack

pytestmark = pytest.mark.servers


def put(chunk_id: str, text: str = "a text about sockets", version: int = 1, **more) -> Put:
    chunk = expanded(chunk_id, text, version, **more)
    return Put(chunk, unpack(chunk["embedding_qwen"]))


def stored(write: Put) -> Stored:
    return Stored(write.version, write.chunk["text_sha256"], complete=True)


@pytest.fixture
async def store(stores, settings) -> OpenSearchStore:
    """A store whose index shows new writes to searches only after a refresh."""
    await stores.opensearch._call(
        "PUT", f"/{settings.opensearch_alias}/_settings", body={"index": {"refresh_interval": "-1"}}
    )
    return stores.opensearch


@pytest.fixture
def fetched(store, monkeypatch) -> list[str]:
    """The documents that were read as a whole."""
    names: list[str] = []
    get = store._get

    async def noted(ids, index, **params):
        names.extend([] if params.get("_source") == "false" else ids)
        return await get(ids, index, **params)

    monkeypatch.setattr(store, "_get", noted)
    return names


async def test_documents_that_cannot_be_read_now_are_an_outage(store):
    """Otherwise `verify` reports chunks as lost, and a search returns hits without a text."""
    await store.write([put("c")])
    await store._call("POST", f"/{store._target}/_close")
    with pytest.raises(Outage, match="index_closed_exception"):
        await store.stored(["c"])


async def test_what_no_search_shows_yet_is_stored_all_the_same(store):
    await store.write([put("changed", "old", 1), put("same version", "old", 1), put("deleted"), put("back")])
    await store.write([Tombstone("back", 2)])
    await store.count()
    changed, same, back, new = (
        put("changed", "new", 2),
        put("same version", "new", 1),
        put("back", version=3),
        put("new"),
    )
    await store.write([changed, same, back, new, Tombstone("deleted", 2)])
    assert await store.stored(["changed", "same version", "deleted", "back", "new", "never"]) == {
        **{write.chunk_id: stored(write) for write in (changed, same, back, new)},
        "deleted": Stored(2, None, complete=True),
    }


async def test_a_delete_is_remembered_with_its_version(store):
    await store.write([put("a", version=1), Tombstone("b", 7)])
    await store.write([Tombstone("a", 5)])
    remembered = {"a": Stored(5, None, complete=True), "b": Stored(7, None, complete=True)}
    assert await store.stored(["a", "b"]) == remembered
    await store.count()
    assert await store.stored(["a", "b"]) == remembered
    assert await store.count() == 0


async def test_no_document_is_read_for_what_a_search_shows(store, fetched):
    """A document is mostly terms: reading documents makes `stream verify` 40 times slower."""
    await store.write([put("a"), put("字" * 512), put("empty", splade_terms={}), Tombstone("deleted", 1)])
    await store.count()
    await store.write([put("new")])
    found = await store.stored(["a", "字" * 512, "empty", "deleted", "new"])
    assert len(found) == 5
    assert all(one.complete for name, one in found.items() if name != "deleted")
    assert fetched == ["new"]


async def test_documents_of_an_earlier_version_are_complete_and_those_without_terms_are_not(store, settings):
    """An earlier version wrote no `splade_origin`."""
    fields = {"doc_id": "d", "version": 1, "text": "t", "text_sha256": "00"}
    for chunk_id, more in {"earlier": {"splade_terms": {"x": 1.0}}, "none": {}}.items():
        path = f"/{settings.opensearch_alias}/_doc/{chunk_id}"
        await store._call("PUT", path, body=fields | more | {"chunk_id": chunk_id})
    await store.count()
    assert await store.stored(["earlier", "none"]) == {
        "earlier": Stored(1, "00", complete=True),
        "none": Stored(1, "00", complete=False),
    }


async def test_writes_that_a_higher_version_outranks_are_counted(store):
    """The counter shows that a producer's versions decrease, before compaction turns this into a difference."""

    def outranked() -> float:
        return REGISTRY.get_sample_value("stream_outranked_total", {"store": "OpenSearch"}) or 0

    before = outranked()
    await store.write([put("a", version=5), put("b", version=5), Tombstone("c", 5)])
    await store.write([put("a", version=5), put("b", version=6)])
    assert outranked() == before
    lower: list[Put | Tombstone] = [put("a", version=4), Tombstone("b", 4), put("c", version=4), put("d", version=1)]
    assert await store.write(lower) == {}
    assert outranked() == before + 3
