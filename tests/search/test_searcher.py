"""If these fail, one slow or broken part costs a user the whole answer, or an answer hides what it lacks."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support import sparse_vector

from stream.config import Settings
from stream.errors import ConfigurationError, Outage, StreamError
from stream.models import splade
from stream.search.request import Group, Request
from stream.search.searcher import Searcher
from stream.stores import Stores
from stream.stores.base import Near, NoGeneration, Shown

PROVENANCE = {"model": "m", "revision": "1", "parameters": {}}
DOWN = Outage("the store is down")
DEADLINE = 1.0  # seconds for the parts that answer at once; the others never do


async def never(*_: Any, **__: Any) -> Any:
    await asyncio.Event().wait()


def failing(error: StreamError) -> Callable[..., Awaitable[Any]]:
    async def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


class Store:
    """A store that is live in generation 3. Each chunk has a text."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.generations: list[int] = []

    async def live(self) -> int:
        return 3

    async def shown(self, chunk_ids: list[str], generation: int) -> dict[str, Shown]:
        return {one: Shown(one, f"of {one[0]}", 1, f"{one} in {self.name}", None, None) for one in chunk_ids}

    async def unfiltered(self, generation: int) -> int:
        return 0


class OpenSearch(Store):
    """Finds a1 before b1 by words, and b1 before c1 by terms."""

    async def search(self, body: dict[str, Any], generation: int, **_: str) -> dict[str, Any]:
        self.generations.append(generation)
        found = {"a1": 9.0, "b1": 3.0} if "'match'" in str(body) else {"b1": 8.0, "c1": 2.0}
        hits = [
            {"fields": {"chunk_id": [one], "doc_id": [f"of {one[0]}"]}, "_score": score} for one, score in found.items()
        ]
        return {"hits": {"hits": hits}}


class Neo4j(Store):
    """Finds b1, b2 and a1."""

    async def nearest(self, vector: Any, k: int, provenance: Any, generation: int, condition: Any) -> list[Near]:
        self.generations.append(generation)
        return [Near("b1", "of b", 0.9), Near("b2", "of b", 0.8), Near("a1", "of a", 0.1)]


class Embedder:
    provenance = PROVENANCE

    async def embed_queries(self, queries: Sequence[str]) -> list[np.ndarray]:
        return [np.ones(4, np.float32) for _ in queries]


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The stores and the embedder, for a test to break."""
    made = SimpleNamespace(load=lambda settings: None)

    class Encoder:
        def __init__(self, settings: Settings) -> None:
            made.load(settings)

        def encode(self, texts: list[str]) -> list[Any]:
            return [sparse_vector({"socket": 1.0}, 1.0) for _ in texts]

    monkeypatch.setattr(splade, "SparseEncoder", Encoder)
    made.opensearch, made.neo4j, made.embedder = OpenSearch("OpenSearch"), Neo4j("Neo4j"), Embedder()
    return made


def searcher(parts: SimpleNamespace) -> Searcher:
    return Searcher(Settings(_env_file=None), Stores(parts.neo4j, parts.opensearch), parts.embedder)


def request(**asked: Any) -> Request:
    return Request(query="a socket", **asked)


async def test_hybrid_asks_all_legs_in_one_generation_and_each_hit_says_what_they_gave(parts):
    answer = await searcher(parts).search(request())
    assert [hit.chunk_id for hit in answer.hits] == ["b1", "b2", "a1", "c1"]
    best = answer.hits[0]
    assert {leg: (part.rank, part.score) for leg, part in best.legs.items()} == {
        "bm25": (2, 3.0),
        "splade": (1, 8.0),
        "dense": (1, 0.9),
    }
    assert best.score == sum(part.contribution for part in best.legs.values())
    assert (answer.degraded, answer.generation, answer.reachable) == ({}, 3, 4)
    assert set(parts.opensearch.generations + parts.neo4j.generations) == {3}


@pytest.mark.parametrize(
    ("mode", "found"), [("bm25", ["a1", "b1"]), ("splade", ["b1", "c1"]), ("dense", ["b1", "b2", "a1"])]
)
async def test_one_leg_alone_shows_raw_scores_and_asks_no_other_store(parts, mode, found):
    for store in {"dense": [parts.opensearch]}.get(mode, [parts.neo4j]):
        store.live = store.search = store.nearest = store.shown = failing(DOWN)
    answer = await searcher(parts).search(request(mode=mode, strict=True))
    assert [hit.chunk_id for hit in answer.hits] == found
    assert all(hit.score == hit.legs[mode].score for hit in answer.hits)


BROKEN = {
    "Neo4j is down": (("neo4j", failing(DOWN)), {"dense"}, "the store is down"),
    "Neo4j hangs": (("neo4j", never), {"dense"}, "has not answered within"),
    "OpenSearch is down": (("opensearch", failing(DOWN)), {"bm25", "splade"}, "the store is down"),
    "OpenSearch hangs": (("opensearch", never), {"bm25", "splade"}, "has not answered within"),
    "vLLM is down": (("embedder", failing(Outage("vLLM is down"))), {"dense"}, "vLLM is down"),
    "vLLM hangs": (("embedder", never), {"dense"}, "has not answered within"),
    "SPLADE cannot be loaded": (("load", ConfigurationError("no model")), {"splade"}, "no model"),
}


def broken(parts: SimpleNamespace, what: str, how: Any) -> None:
    if what == "load":

        def load(_: Settings) -> None:
            raise how

        parts.load = load
        return
    part = getattr(parts, what)
    for name in ("live", "search", "nearest", "shown", "embed_queries"):
        if hasattr(part, name):
            setattr(part, name, how)


@pytest.mark.parametrize(("breaks", "missing", "reason"), BROKEN.values(), ids=BROKEN)
async def test_a_leg_that_fails_is_named_and_the_others_answer(parts, breaks, missing, reason):
    broken(parts, *breaks)
    answer = await searcher(parts).search(request(deadline=DEADLINE if breaks[1] is never else 60))
    assert set(answer.degraded) == missing
    assert all(reason in said for said in answer.degraded.values())
    assert answer.hits
    assert all(set(hit.legs).isdisjoint(missing) for hit in answer.hits)


@pytest.mark.parametrize(("breaks", "missing", "reason"), BROKEN.values(), ids=BROKEN)
async def test_a_strict_request_wants_every_leg(parts, breaks, missing, reason):
    broken(parts, *breaks)
    with pytest.raises(StreamError, match=reason):
        await searcher(parts).search(request(deadline=DEADLINE if breaks[1] is never else 60, strict=True))


async def test_if_no_leg_answers_the_error_says_what_can_be_mended(parts):
    broken(parts, "neo4j", failing(NoGeneration("start a worker")))
    broken(parts, "opensearch", failing(DOWN))
    with pytest.raises(NoGeneration, match="start a worker"):
        await searcher(parts).search(request())


async def test_without_splade_lexical_is_said_to_lack_it(parts):
    broken(parts, "load", ConfigurationError("no model"))
    answer = await searcher(parts).search(request(mode="lexical"))
    assert [hit.chunk_id for hit in answer.hits] == ["a1", "b1"]
    assert answer.degraded == {"splade": "no model"}


async def test_a_chunk_that_one_store_lacks_yet_is_shown_from_the_other(parts):
    async def shown(chunk_ids, generation):
        return {one: Shown(one, "d", 1, "text", None, None) for one in chunk_ids if one != "b2"}

    parts.opensearch.shown = shown
    answer = await searcher(parts).search(request())
    assert {hit.chunk_id: hit.text for hit in answer.hits}["b2"] == "b2 in Neo4j"


async def test_a_chunk_that_was_deleted_meanwhile_is_left_out(parts):
    async def shown(chunk_ids, generation):
        return {one: Shown(one, "d", 1, "text", None, None) for one in chunk_ids if one != "b1"}

    parts.opensearch.shown = parts.neo4j.shown = shown
    assert [hit.chunk_id for hit in (await searcher(parts).search(request())).hits] == ["b2", "a1", "c1"]


async def test_a_leg_of_weight_0_is_not_asked(parts):
    broken(parts, "neo4j", failing(DOWN))
    answer = await searcher(parts).search(request(weights={"dense": 0}, strict=True))
    assert all("dense" not in hit.legs for hit in answer.hits)


async def test_a_minimum_score_takes_only_that_leg_s_hits(parts):
    answer = await searcher(parts).search(request(min_score={"dense": 0.85, "bm25": 5}))
    assert {hit.chunk_id: set(hit.legs) for hit in answer.hits} == {
        "a1": {"bm25"},
        "b1": {"splade", "dense"},
        "c1": {"splade"},
    }


async def test_groups_count_as_one_and_keep_their_best_chunks(parts):
    answer = await searcher(parts).search(request(k=1, group=Group(size=2)))
    assert [hit.chunk_id for hit in answer.hits] == ["b1", "b2"]
    assert answer.reachable == 3


async def test_pages_have_each_hit_once(parts):
    search = searcher(parts)
    found, cursor = [], None
    while True:
        answer = await search.search(request(k=1, cursor=cursor))
        found += [hit.chunk_id for hit in answer.hits]
        cursor = answer.cursor
        if cursor is None:
            break
    assert found == [hit.chunk_id for hit in (await search.search(request())).hits]


async def test_a_page_of_another_generation_is_refused(parts):
    search = searcher(parts)
    cursor = (await search.search(request(k=1))).cursor

    async def live() -> int:
        return 4

    parts.opensearch.live = parts.neo4j.live = live
    with pytest.raises(StreamError, match="search again"):
        await search.search(request(k=1, cursor=cursor))


async def test_filters_do_not_silently_miss_chunks_of_an_earlier_release(parts):
    async def unfiltered(generation: int) -> int:
        return 12

    parts.neo4j.unfiltered = unfiltered
    condition = {"field": "doc_id", "equal": "d"}
    with pytest.raises(ConfigurationError, match=r"12 chunks .* `stream reindex start`"):
        await searcher(parts).search(request(mode="dense", filter=condition))
    assert (await searcher(parts).search(request(mode="dense"))).hits
