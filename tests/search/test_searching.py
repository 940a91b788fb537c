"""If these fail on the real stores, a search misses chunks that match, repeats them, or shows scores that are wrong."""

import asyncio
import signal
from collections.abc import AsyncIterator
from itertools import count
from typing import Any

import numpy as np
import pytest
from conftest import isolated
from searchable import COUNT, Encoder, searchable
from support import DIMENSIONS, LONGEST, until

from stream import config
from stream.config import Settings
from stream.errors import StreamError
from stream.local import supervisor
from stream.local.profile import Profile
from stream.models import splade
from stream.models.embeddings import EmbeddingClient
from stream.search import dsl
from stream.search.request import DEPTH, Group, Request
from stream.search.searcher import Searcher
from stream.stores import Stores, neo4j, open_stores

pytestmark = pytest.mark.servers

MODES = ("bm25", "splade", "dense", "lexical", "hybrid")
QUERY = "a socket and a thread"
DEADLINE = 1.5  # seconds for the stores that answer; those that are stopped never do


@pytest.fixture(autouse=True)
def _splade(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splade, "SparseEncoder", Encoder)


@pytest.fixture(scope="module")
async def filled(environment: dict[str, str]) -> AsyncIterator[Settings]:
    """The settings of `COUNT` indexed chunks, and two that were deleted again."""
    async with searchable(config.only(isolated(environment))) as settings:
        yield settings


@pytest.fixture
async def stores(filled: Settings) -> AsyncIterator[Stores]:
    """The stores, opened for one test."""
    async with open_stores(filled) as opened:
        yield opened


@pytest.fixture
async def indexed(filled: Settings, stores: Stores) -> AsyncIterator[Searcher]:
    """A searcher with an empty cache."""
    async with EmbeddingClient(filled) as embedder:
        yield Searcher(filled, stores, embedder)


def request(**asked: Any) -> Request:
    return Request(query=QUERY, strict=True, deadline=60, **asked)


async def pages(searcher: Searcher, **asked: Any) -> list[list[str]]:
    """The chunks of all pages."""
    found, cursor = [], None
    while True:
        answer = await searcher.search(request(cursor=cursor, **asked))
        found.append([hit.chunk_id for hit in answer.hits])
        if (cursor := answer.cursor) is None:
            return found


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("group", [None, Group(size=2)], ids=["chunks", "documents"])
async def test_the_pages_together_are_one_large_answer(indexed, mode, group):
    large = await indexed.search(request(mode=mode, k=DEPTH, group=group))
    found = [chunk_id for page in await pages(indexed, mode=mode, k=7, group=group) for chunk_id in page]
    assert found[: len(large.hits)] == [hit.chunk_id for hit in large.hits]
    assert len(found) == len(set(found)) >= large.reachable
    if group is None:
        assert len(found) == large.reachable == len({*found})


WAYS = {  # how many chunks Neo4j compares with the query, and how many its index proposes for one
    "all are compared": (COUNT + 1, 2),
    "the index proposes": (40, 2),
    "the index proposes too few": (40, 0),
}


@pytest.fixture(params=WAYS.values(), ids=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How Neo4j finds the nearest of the chunks that match."""
    compared, proposed = request.param
    monkeypatch.setattr(neo4j, "EXACT_NUMBERS", compared * DIMENSIONS)
    monkeypatch.setattr(neo4j, "MARGIN", proposed)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("matching", [300, 150, 30, 3, 1, 0])
async def test_k_hits_whenever_k_match_at_any_selectivity(indexed, way, mode, matching):
    answer = await indexed.search(request(mode=mode, k=20, filter={"field": "metadata.n", "lt": matching}))
    assert len(answer.hits) == min(20, matching)
    assert all(hit.metadata["n"] < matching for hit in answer.hits)


async def test_a_filter_changes_no_score_and_no_order(indexed, way):
    condition = {"any": [{"field": "metadata.lang", "equal": "de"}, {"field": "doc_id", "in": ["d1", "d7"]}]}
    for mode in ("bm25", "splade", "dense", "lexical"):
        everything = (await indexed.search(request(mode=mode, k=1000))).hits
        expected = [hit for hit in everything if hit.metadata["lang"] == "de" or hit.doc_id in ("d1", "d7")]
        found = (await indexed.search(request(mode=mode, k=200, filter=condition))).hits
        assert [(hit.chunk_id, hit.score) for hit in found] == [
            (hit.chunk_id, pytest.approx(hit.score, rel=1e-6)) for hit in expected[: len(found)]
        ]
        assert len(found) == min(200, len(expected))


async def test_a_chunk_that_has_only_light_terms_of_the_query_is_found(indexed, monkeypatch):
    few = request(mode="splade", filter={"field": "metadata.n", "lt": 30}, k=30)
    expected = [(hit.chunk_id, hit.score) for hit in (await indexed.search(few)).hits]
    monkeypatch.setattr(dsl, "HEAVY", 2)  # no term is heavy
    assert [(hit.chunk_id, hit.score) for hit in (await indexed.search(few)).hits] == expected


async def test_dense_scores_are_exact_cosines(indexed, stores):
    vector = await indexed._legs.encoder.vector(QUERY)
    rows = await stores.neo4j._run("MATCH (c:Chunk) RETURN c.chunk_id AS chunk_id, c.embedding_qwen AS vector")
    exact = {row["chunk_id"]: float(np.dot(vector, row["vector"])) for row in rows}
    answer = await indexed.search(request(mode="dense", k=10))
    assert {hit.chunk_id: hit.score for hit in answer.hits} == pytest.approx(
        {hit.chunk_id: exact[hit.chunk_id] for hit in answer.hits}, abs=1e-5
    )
    best = sorted(exact, key=lambda chunk_id: -exact[chunk_id])[:10]
    assert [hit.score for hit in answer.hits] == pytest.approx([exact[one] for one in best], abs=1e-5)


async def test_splade_scores_are_dot_products_of_the_raw_vectors(indexed):
    encoder = Encoder(Settings(_env_file=None))

    def raw(of: str) -> dict[str, float]:
        vector = encoder.one(of)
        return {term: weight * vector.norm for term, weight in vector.terms.items()}

    query = raw(QUERY)
    for hit in (await indexed.search(request(mode="splade", k=5))).hits:
        stored = raw(hit.text)
        assert hit.score == pytest.approx(sum(query[term] * stored.get(term, 0) for term in query), rel=0.01)


@pytest.mark.parametrize("mode", ["bm25", "splade", "lexical", "hybrid"])
async def test_the_shares_of_words_and_terms_add_up_to_the_leg_s_score(indexed, mode):
    answer = await indexed.search(request(mode=mode, k=30, explain=True))
    assert answer.hits
    for hit in answer.hits:
        lexical = {leg: part.score for leg, part in hit.legs.items() if leg != "dense"}
        assert {leg: sum(hit.terms[leg].values()) for leg in lexical} == pytest.approx(lexical, rel=1e-4)


@pytest.mark.parametrize("mode", MODES)
async def test_why_gives_a_chunk_the_rank_and_the_score_that_it_has(indexed, mode):
    answer = await indexed.search(request(mode=mode, k=200))
    for rank, hit in list(enumerate(answer.hits, start=1))[::40]:
        why = await indexed.why(request(mode=mode, k=200), hit.chunk_id)
        assert (why.stored, why.rank, why.score) == (True, rank, pytest.approx(hit.score))
        assert len(why.reasons) == len(why.legs) - len(hit.legs)  # why a leg has not found it
        for leg, part in hit.legs.items():
            assert why.legs[leg].score == pytest.approx(part.score, rel=1e-5)
            same = sum(other.legs[leg].score == part.score for other in answer.hits if leg in other.legs)
            assert abs(why.legs[leg].rank - part.rank) < same


async def test_why_not_says_what_keeps_a_chunk_away(indexed):
    async def reasons(chunk_id: str, **asked: Any) -> list[str]:
        return (await indexed.why(request(**asked), chunk_id)).reasons

    assert await reasons("unknown") == await reasons(f"c{COUNT}") == ["the searched stores do not have it"]
    excluded = await reasons("c7", filter={"field": "metadata.n", "gt": 7}, mode="bm25")
    assert "the filter excludes it" in excluded
    assert "below the minimum" in (await reasons("c7", mode="dense", min_score={"dense": 0.99}))[0]
    worst = (await indexed.search(request(mode="bm25", k=DEPTH))).hits[-1].chunk_id
    assert f"{DEPTH - 1} hits have a higher score" in await reasons(worst, mode="bm25")


async def test_what_is_deleted_or_has_no_word_of_the_query_is_not_found(indexed):
    found = {hit.chunk_id for hit in (await indexed.search(request(k=1000))).hits}
    assert found.isdisjoint({f"c{COUNT}", f"c{COUNT + 1}"})
    nothing = await indexed.search(Request(query="the of and", mode="bm25", strict=True))
    assert (nothing.hits, nothing.reachable, nothing.cursor) == ([], 0, None)


EVIL = {
    "quotes": '" OR 1=1 //',
    "Lucene": "field:* AND (a OR b)~2^3",
    "JSON": '{"query": {"match_all": {}}}',
    "control characters": "\x1b[31m\x00\x7f",
    "emoji": "🙂🙃",
    "right to left": "שלום עולם",
    "characters without spaces": "語" * 3000,
    "10,000 words": " ".join(f"word{n}" for n in range(10_000)),
    "one long word": "a" * 100_000,
}


@pytest.mark.parametrize("query", EVIL.values(), ids=EVIL)
@pytest.mark.parametrize("mode", MODES)
async def test_any_text_is_a_query(indexed, mode, query):
    try:
        answer = await indexed.search(Request(query=query, mode=mode, strict=True, deadline=60))
    except StreamError as error:  # the embedding server refuses what is too long for it
        assert mode in ("dense", "hybrid")
        assert "tokens" in str(error)
    else:
        assert answer.degraded == {}


@pytest.mark.parametrize(
    ("server", "missing"), [("neo4j", {"dense"}), ("opensearch", {"bm25", "splade"}), ("embedder", {"dense"})]
)
async def test_a_frozen_server_costs_its_legs_and_no_more(indexed, profile: Profile | None, server, missing):
    if profile is None:
        pytest.skip("these servers are not ours to stop")
    await indexed.search(request())
    number = count()

    async def only_its_legs() -> bool:
        asked = Request(query=f"a lock and file {next(number)}", deadline=DEADLINE)
        answer = await asyncio.wait_for(indexed.search(asked), LONGEST)
        late = {leg for leg, reason in answer.degraded.items() if f"has not answered within {DEADLINE:g} s" in reason}
        return late == set(answer.degraded) == missing and bool(answer.hits)

    supervisor.kill(profile, server, signal.SIGSTOP)
    try:
        await until(only_its_legs)
    finally:
        supervisor.kill(profile, server, signal.SIGCONT)
    assert not (await indexed.search(request())).degraded
