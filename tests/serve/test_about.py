"""If these fail, the service says wrong things of what it has indexed, or shows a key what only others may see."""

import asyncio
from collections import Counter
from typing import Any

import httpx
import pytest
from ports import free_ports
from searchable import COUNT, Encoder
from serving import TEAM, client, problem
from support import LONGEST, expanded

from stream import __version__
from stream.models import splade
from stream.records import Position, Tombstone
from stream.search import choices, searcher
from stream.serve import about as asking
from stream.serve.service import Service, open_service
from stream.stores.base import Put, Store
from stream.vectors import unpack

pytestmark = pytest.mark.servers

ENGLISH = [n for n in range(COUNT) if n % 3]  # what the key of `team` sees
SECRET = "nobodyelse"  # a word that only a chunk of others has
MADE = {"model": "m", "revision": "r", "parameters": {}}  # of `expanded`


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small SPLADE. A busy machine is no outage."""
    monkeypatch.setattr(splade, "SparseEncoder", Encoder)
    monkeypatch.setattr(asking, "PATIENCE", LONGEST)
    monkeypatch.setattr(searcher, "CHUNK_SECONDS", LONGEST)


async def write(store: Store, chunk_id: str, version: int, **more: Any) -> None:
    made = expanded(chunk_id, f"a socket of {SECRET}", version, **more)
    assert await store.write([Put(made, unpack(made["embedding_qwen"]))]) == {}


async def remove(service: Service, *chunk_ids: str) -> None:
    for store in service.stores.both:
        assert await store.write([Tombstone(chunk_id, 9) for chunk_id in chunk_ids]) == {}
        assert await store.count() == COUNT


# What is indexed


async def test_the_service_says_what_it_searches_with_which_models(filled, service, everyone, team):
    about = (await everyone.get("/about")).json()
    alias = filled.opensearch_alias
    assert about == {
        "version": __version__,
        "generation": 1,
        "indexes": {"opensearch_alias": alias, "opensearch_index": f"{alias}-1", "neo4j_index": filled.neo4j_index},
        "models": {"dense": service.searcher._legs.encoder._embedder.provenance, "splade": MADE},
        "agree": {"dense": True, "splade": True},
        "chunks": {"Neo4j": COUNT, "OpenSearch": COUNT},
        "lag": {"embed": 0, "expand": 0, "index": 0},
        "errors": {},
    }
    assert (await team.get("/about")).json() == {**about, "chunks": None, "lag": None}


async def test_it_says_when_chunks_are_of_another_model_than_queries(filled):
    async with open_service(filled.model_copy(update={"embed_revision": "another"})) as other, client(other) as http:
        assert (await http.get("/about")).json()["agree"] == {"dense": False, "splade": True}


async def test_a_server_that_is_down_is_named_and_the_others_are_asked(filled, key):
    (port,) = free_ports(1)
    down = {"kafka_servers": f"127.0.0.1:{port}", "neo4j_uri": f"bolt://127.0.0.1:{port}"}
    file, secret = key("team", TEAM)
    async with open_service(filled.model_copy(update=down)) as service:
        async with client(service) as http:
            about = (await http.get("/about")).json()
        async with client(service, file, secret) as http:
            restricted = (await http.get("/about")).json()
    assert (about["generation"], about["lag"], about["indexes"]) == (1, None, None)
    assert about["chunks"] == {"Neo4j": None, "OpenSearch": COUNT}
    assert about["agree"] == {"dense": None, "splade": True}
    assert set(about["errors"]) == {"lag", "chunks", "agree", "indexes"}
    assert str(port) in about["errors"]["lag"]
    assert "Neo4j" in about["errors"]["chunks"]
    assert set(restricted["errors"]) == {"agree", "indexes"}


async def test_callers_that_come_together_are_one_question_to_the_servers(service, everyone, monkeypatch):
    asked = []
    count = service.stores.neo4j.count

    async def counted() -> int:
        asked.append(1)
        return await count()

    monkeypatch.setattr(service.stores.neo4j, "count", counted)
    answers = await asyncio.gather(*(everyone.get("/about") for _ in range(5)))
    assert {answer.status_code for answer in answers} == {200}
    assert len(asked) == 1


# What can be filtered


async def facets(http: httpx.AsyncClient, condition: Any = None) -> dict[str, list[tuple[Any, int]]]:
    answer = (await http.post("/facets", json={"filter": condition} if condition else {})).json()
    return {field: [(one["value"], one["count"]) for one in values] for field, values in answer["fields"].items()}


async def test_each_field_has_its_values_with_the_chunks_that_have_them(everyone, team):
    languages = Counter("en" if n % 3 else "de" for n in range(COUNT))
    everything = await facets(everyone)
    assert list(everything) == ["metadata.lang", "metadata.n"]  # doc_id is left out: it has a value for each document
    assert everything["metadata.lang"] == languages.most_common()
    assert len(everything["metadata.n"]) == choices.MOST_VALUES
    assert {count for _, count in everything["metadata.n"]} == {1}

    few = await facets(everyone, {"field": "metadata.n", "lt": 10})
    assert sorted(few["metadata.n"]) == [(n, 1) for n in range(10)]
    assert few["metadata.lang"] == [("en", 6), ("de", 4)]
    assert await facets(everyone, {"field": "metadata.lang", "equal": "fr"}) == {}

    mine = await facets(team)
    assert mine["metadata.lang"] == [("en", len(ENGLISH))]
    assert {n for n, _ in mine["metadata.n"]} < set(ENGLISH)
    assert await facets(team, {"field": "metadata.lang", "equal": "de"}) == {}
    assert (await facets(team, {"not": TEAM.model_dump()})) == {}


async def test_values_keep_their_types_and_long_ones_are_left_out(service, everyone):
    nested = {"a": {"b": [True, 1, "1", 0.5, None]}, "=<": 'q"', "long": "x" * 600}
    await write(service.stores.opensearch, "odd", 1, facet_json=nested)
    await service.stores.opensearch.count()  # makes it searchable
    found = await facets(everyone, {"field": "facet_json.=<", "exists": True})
    await remove(service, "odd")
    assert sorted(map(repr, found["facet_json.a.b"])) == sorted(map(repr, [(True, 1), (1, 1), ("1", 1), (0.5, 1)]))
    assert found["facet_json.=<"] == [('q"', 1)]
    assert found["facet_json.long"] == []
    assert set(found) == {"facet_json.a.b", "facet_json.=<", "facet_json.long"}


@pytest.mark.parametrize("body", [{"filter": {"field": "text", "equal": 1}}, {"fliter": {}}, []])
async def test_a_filter_that_cannot_be_is_a_problem(everyone, body):
    assert problem(await everyone.post("/facets", json=body))["status"] == 422


async def test_chunks_of_an_earlier_release_are_told_as_for_filters(filled, service, everyone):
    """A count that silently leaves them out would be wrong."""
    document = {"chunk_id": "old", "doc_id": "d", "version": 1, "text": "old"}
    await service.stores.opensearch._call(
        "PUT", f"/{filled.opensearch_alias}-1/_doc/old", body=document, refresh="true"
    )
    answer = problem(await everyone.post("/facets", json={}))
    await service.stores.opensearch._call("DELETE", f"/{filled.opensearch_alias}-1/_doc/old", refresh="true")
    assert answer["status"] == 503
    assert "stream reindex start" in answer["detail"]


# One chunk


async def test_a_chunk_says_which_models_made_it_and_from_which_record(service, everyone):
    chunk = (await everyone.get("/chunks/c5")).json()
    dense = service.searcher._legs.encoder._embedder.provenance
    assert (chunk["provenance"], chunk["position"]) == ({"dense": dense, "splade": MADE}, None)
    for store in service.stores.both:
        await write(store, "placed", 1, position=Position("chunks.expanded", 1, 42))
    placed = (await everyone.get("/chunks/placed")).json()
    await remove(service, "placed")
    assert placed["position"] == {"topic": "chunks.expanded", "partition": 1, "offset": 42}
    assert placed["provenance"] == {"dense": MADE, "splade": MADE}


async def test_while_the_stores_hold_two_versions_a_chunk_is_what_its_text_says(service, everyone, team, filled):
    """Neo4j still has the version that the key may see: neither a hit nor a chunk may show the other one's text."""
    await write(service.stores.neo4j, "moved", 1, metadata={"lang": "en"}, position=Position("e", 0, 1))
    await write(service.stores.opensearch, "moved", 2, metadata={"lang": "de"}, position=Position("e", 0, 2))
    await write(service.stores.neo4j, "early", 1, metadata={"lang": "en"}, position=Position("e", 0, 3))
    await service.stores.opensearch.count()
    moved, early = (await everyone.get("/chunks/moved")).json(), (await team.get("/chunks/early")).json()
    refused = await team.get("/chunks/moved")
    answers = [
        (await team.post("/search", json={"query": SECRET, "mode": mode, "k": 2 * COUNT, "deadline": 60})).json()
        for mode in ("dense", "hybrid", "lexical")
    ]
    await remove(service, "moved", "early")
    assert (moved["version"], moved["position"]["offset"]) == (2, 2)
    assert moved["provenance"] == {"dense": None, "splade": MADE}
    assert early["position"]["offset"] == 3
    assert early["provenance"] == {"dense": MADE, "splade": None}
    assert problem(refused)["status"] == 404
    assert all({"moved"}.isdisjoint(hit["chunk_id"] for hit in answer["hits"]) for answer in answers)


# What a key with a filter may see

FOR_ALL = "/flow/"  # routes about the whole flow
ASKED: dict[tuple[str, str], dict[str, Any]] = {
    ("post", "/search"): {"json": {"query": "socket", "k": 2 * COUNT, "explain": True}},
    ("post", "/search/batch"): {"json": {"requests": [{"query": "socket", "k": 2 * COUNT}]}},
    ("post", "/chunks/{chunk_id}/why"): {"json": {"query": "socket"}},
    ("get", "/chunks/{chunk_id}/why"): {"params": {"q": "socket"}},
    ("get", "/chunks/{chunk_id}"): {},
    ("post", "/facets"): {"json": {}},
    ("get", "/about"): {},
}


async def test_no_route_shows_a_key_a_chunk_that_its_filter_does_not_take(service, everyone, team):
    """A new route is about the whole flow and refuses the key, or it needs a line in `ASKED`."""
    hidden = {"metadata": {"lang": "de", "of": SECRET}, "doc_id": SECRET, "splade_terms": {SECRET: 1.0}}
    for store in service.stores.both:
        await write(store, "hidden", 1, **hidden)
    await service.stores.opensearch.count()
    paths = (await everyone.get("/openapi.json")).json()["paths"]
    shown, seen_by_everyone = [], []
    for method, path in [(method, path) for path, methods in paths.items() for method in methods]:
        if path.startswith(FOR_ALL):
            assert problem(await team.request(method, path))["status"] == 403, path
            continue
        asked = method, path.replace("{chunk_id}", "hidden"), ASKED[method, path]
        for http, found in ((team, shown), (everyone, seen_by_everyone)):
            if SECRET in (await http.request(*asked[:2], **asked[2])).text:
                found.append(path)
    await remove(service, "hidden")
    assert len([path for path in paths if path.startswith(FOR_ALL)]) == 2
    assert shown == []
    assert {"/search", "/search/batch", "/chunks/{chunk_id}", "/facets"} <= set(seen_by_everyone)
