"""If these fail on the real stores, the service finds other chunks than the library, or shows a key those of others."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st
from searchable import COUNT, Encoder
from serving import TEAM, problem

from stream.models import splade
from stream.search import searcher
from stream.search.request import LEGS, Request

pytestmark = pytest.mark.servers

MODES = tuple(LEGS)
QUERY = "a socket and a thread"
DEADLINE = 60
SEEN = {f"c{n}" for n in range(COUNT) if n % 3}  # by the key of `team`


@pytest.fixture(autouse=True)
def _splade(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splade, "SparseEncoder", Encoder)
    monkeypatch.setattr(searcher, "CHUNK_SECONDS", DEADLINE)


async def test_readiness_waits_for_both_models_and_both_stores(service, everyone):
    assert (await everyone.get("/readyz")).status_code == 503
    assert (await everyone.get("/healthz")).status_code == 200
    await service.warm()
    assert (await everyone.get("/readyz")).status_code == 200
    service.drain()
    answer = await everyone.get("/readyz")
    assert (answer.status_code, "stopping" in answer.text) == (503, True)


@pytest.mark.parametrize("mode", MODES)
async def test_the_service_finds_what_the_library_finds(service, everyone, mode):
    asked: list[dict[str, Any]] = [
        {"query": QUERY, "mode": mode, "k": 20, "strict": True, "deadline": DEADLINE},
        {"query": "queue", "mode": mode, "group": {"size": 2}, "strict": True, "deadline": DEADLINE},
        {"query": QUERY, "mode": mode, "filter": TEAM.model_dump(), "strict": True, "deadline": DEADLINE},
    ]
    library = [await service.searcher.search(Request(**one)) for one in asked]
    alone = [(await everyone.post("/search", json=one)).json() for one in asked]
    batch = (await everyone.post("/search/batch", json={"requests": asked})).json()["answers"]
    for expected, single, several in zip(library, alone, batch, strict=True):
        ids = [hit.chunk_id for hit in expected.hits]
        assert ids
        assert [hit["chunk_id"] for hit in single["hits"]] == ids
        assert [hit["chunk_id"] for hit in several["answer"]["hits"]] == ids


async def test_a_batch_embeds_its_queries_in_one_call(service, everyone):
    sizes = []
    embed = service.searcher._legs.encoder._embedder.embed_queries

    async def counted(queries: list[str]) -> Any:
        sizes.append(len(queries))
        return await embed(queries)

    service.searcher._legs.encoder._embedder.embed_queries = counted
    asked = [{"query": f"socket {n}", "strict": True, "deadline": DEADLINE} for n in range(7)]
    answer = await everyone.post("/search/batch", json={"requests": asked})
    assert all(one["problem"] is None for one in answer.json()["answers"])
    assert sizes == [7]


async def test_one_failing_search_of_a_batch_fails_alone(everyone):
    asked = [{"query": QUERY}, {"query": QUERY, "cursor": "wrong"}, {"query": "queue"}]
    answers = (await everyone.post("/search/batch", json={"requests": asked})).json()["answers"]
    assert [one["problem"] and one["problem"]["status"] for one in answers] == [None, 422, None]


async def test_a_term_that_is_left_out_is_not_searched_for(everyone):
    asked = {"query": "socket thread", "mode": "splade", "k": COUNT}
    both = (await everyone.post("/search", json=asked)).json()
    one = (await everyone.post("/search", json=asked | {"without_terms": ["thread"]})).json()
    assert (set(both["expansion"]), set(one["expansion"])) == ({"socket", "thread"}, {"socket"})
    assert len(one["hits"]) < len(both["hits"])
    assert all("socket" in hit["text"] for hit in one["hits"])


async def test_a_chunk_and_why_it_is_found(everyone):
    chunk = (await everyone.get("/chunks/c5")).json()
    assert (chunk["chunk_id"], chunk["doc_id"], chunk["metadata"]) == ("c5", "d0", {"n": 5, "lang": "en"})
    why = (await everyone.get("/chunks/c5/why", params={"q": QUERY})).json()
    same = (await everyone.post("/chunks/c5/why", json={"query": QUERY})).json()
    assert why == same
    assert (why["stored"], set(why["legs"])) == (True, {"bm25", "splade", "dense"})
    deleted = f"c{COUNT}"
    assert problem(await everyone.get(f"/chunks/{deleted}"))["status"] == 404
    assert (await everyone.get(f"/chunks/{deleted}/why", params={"q": QUERY})).json()["stored"] is False


leaves = st.one_of(
    st.sampled_from(["en", "de"]).map(lambda lang: {"field": "metadata.lang", "equal": lang}),
    st.just({"field": "metadata.lang", "exists": True}),
    st.just({"field": "metadata.lang", "in": ["en", "de"]}),
    st.integers(0, COUNT).map(lambda n: {"field": "metadata.n", "gte": n}),
    st.integers(0, COUNT // 10).map(lambda n: {"field": "doc_id", "equal": f"d{n}"}),
)
filters = st.recursive(
    leaves,
    lambda parts: st.one_of(
        parts.map(lambda part: {"not": part}),
        st.lists(parts, min_size=1, max_size=2).map(lambda some: {"all": some}),
        st.lists(parts, min_size=1, max_size=2).map(lambda some: {"any": some}),
    ),
    max_leaves=4,
)
requests = st.fixed_dictionaries(
    {"query": st.sampled_from([QUERY, "queue", "a number in a file", "nothing"]), "mode": st.sampled_from(MODES)},
    optional={
        "k": st.integers(1, 30),
        "filter": filters,
        "group": st.fixed_dictionaries({"size": st.integers(1, 3)}),
        "explain": st.just(True),
        "fusion": st.sampled_from(["min-max", "rrf"]),
    },
)


@profile(max_examples=profile().max_examples // 3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=requests, number=st.integers(0, COUNT + 1))
async def test_nothing_in_a_request_widens_a_key_s_filter(everyone, team, asked, number):
    asked = asked | {"strict": True, "deadline": DEADLINE}
    mine = (await team.post("/search", json=asked)).json()
    assert {hit["chunk_id"] for hit in mine["hits"]} <= SEEN
    both = {"all": [TEAM.model_dump(), *([asked["filter"]] if "filter" in asked else [])]}
    same = (await everyone.post("/search", json=asked | {"filter": both})).json()
    assert [hit["chunk_id"] for hit in mine["hits"]] == [hit["chunk_id"] for hit in same["hits"]]
    assert mine["reachable"] == same["reachable"]

    # A page of everyone's search does not continue with this key.
    if cursor := (await everyone.post("/search", json=asked)).json()["cursor"]:
        assert problem(await team.post("/search", json=asked | {"cursor": cursor}))["status"] == 422
    if mine["cursor"]:
        page = (await team.post("/search", json=asked | {"cursor": mine["cursor"]})).json()
        assert {hit["chunk_id"] for hit in page["hits"]} <= SEEN

    batch = (await team.post("/search/batch", json={"requests": [asked]})).json()["answers"][0]
    assert {hit["chunk_id"] for hit in batch["answer"]["hits"]} <= SEEN

    # A chunk of others is as unknown as one that does not exist.
    for chunk_id in (f"c{number}", "c-none"):
        why = (await team.post(f"/chunks/{chunk_id}/why", json=asked)).json()
        found = await team.get(f"/chunks/{chunk_id}")
        if chunk_id in SEEN:
            assert (why["stored"], found.status_code) == (True, 200)
        else:
            assert why == {**UNKNOWN, "chunk_id": chunk_id}
            assert problem(found)["status"] == 404


UNKNOWN = {
    "chunk_id": "",
    "stored": False,
    "matches_filter": None,
    "legs": {},
    "rank": None,
    "score": None,
    "terms": {},
    "reasons": ["the searched stores do not have it"],
}
