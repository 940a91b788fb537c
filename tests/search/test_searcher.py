"""If these fail, a search misses what the stores hold, or pays for a query that it has just encoded."""

import itertools
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from cachetools import TTLCache
from support import sparse_vector

from stream.config import Settings
from stream.models import splade
from stream.models.splade import SparseVector
from stream.search import searcher as search
from stream.stores.base import Hit

VECTOR = sparse_vector({"socket": 0.8, "port": 0.6}, 5.0)
PROVENANCE = {"model": "m", "revision": "1", "parameters": {}}
HIT = Hit("a", "d", 1.0, "text")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The clock of the cache."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(search, "TTLCache", partial(TTLCache, timer=lambda: clock.now))
    return clock


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The queries that the model has encoded."""
    queries: list[str] = []

    class Encoder:
        def __init__(self, settings: Settings) -> None: ...

        def encode(self, texts: list[str]) -> list[SparseVector]:
            queries.extend(texts)
            return [VECTOR for _ in texts]

    monkeypatch.setattr(splade, "SparseEncoder", Encoder)
    return queries


@pytest.fixture
def calls() -> list[tuple]:
    return []


@pytest.fixture
def searcher(clock, encoded, calls) -> search.Searcher:
    async def nearest(*arguments):
        calls.append(("neo4j", *arguments))
        return [HIT]

    async def terms(*arguments):
        calls.append(("opensearch", *arguments))
        return [HIT]

    async def embed_query(query):
        return np.array([len(query)])

    stores = SimpleNamespace(neo4j=SimpleNamespace(nearest=nearest), opensearch=SimpleNamespace(search=terms))
    embedder = SimpleNamespace(embed_query=embed_query, provenance=PROVENANCE)
    return search.Searcher(Settings(_env_file=None), stores, embedder)


async def test_lexical_asks_opensearch_with_the_words_and_their_terms(searcher, calls):
    assert await searcher.search("a socket", "lexical", 7) == [HIT]
    assert calls == [("opensearch", "a socket", VECTOR.terms, 7)]


async def test_dense_asks_neo4j_with_the_query_s_vector_and_needs_no_sparse_model(searcher, calls, encoded):
    assert await searcher.search("a socket", "dense", 7) == [HIT]
    assert calls == [("neo4j", np.array([len("a socket")]), 7, PROVENANCE)]
    assert encoded == []


async def test_a_query_is_encoded_once_a_minute(searcher, clock, encoded):
    for now in (0, 59.9, 60.1):
        clock.now = now
        assert await searcher.encode("a socket") == VECTOR
    assert encoded == ["a socket", "a socket"]


async def test_other_words_are_another_query(searcher, encoded):
    for query in ("a socket", "A socket", "a socket "):
        await searcher.encode(query)
    assert encoded == ["a socket", "A socket", "a socket "]


async def test_a_query_that_expires_while_it_is_looked_up_is_found_all_the_same(monkeypatch, encoded):
    seconds = itertools.count(0, 25)
    monkeypatch.setattr(search, "TTLCache", partial(TTLCache, timer=lambda: next(seconds)))
    searcher = search.Searcher(Settings(_env_file=None), None, None)
    for _ in range(5):
        assert await searcher.encode("a socket") == VECTOR


TERMS = {f"term{n}": 1.0 - n / 1000 for n in range(400)}


def test_a_query_that_fits_is_searched_as_it_is():
    for query in ("a  socket, a port", "w " * 600, "\u8a9e" * 600):
        assert search.fitting(query, TERMS) == (query, TERMS)


@pytest.mark.parametrize("many", [400, 1000])
@pytest.mark.parametrize(
    "query",
    [
        " ".join(f"word{n}" for n in range(2000)),
        " ".join(f"a-b{n}.c" for n in range(2000)),
        " ".join("\u8a9e" * (1 + n % 9) + str(n) for n in range(2000)),
        " ".join(f"{'w' * 999}{n}" for n in range(2000)),
    ],
    ids=["words", "parts", "characters", "long"],
)
def test_of_a_long_query_the_first_words_and_the_heaviest_terms_fit(query, many):
    terms = {f"term{n}": 1.0 - n / 2000 for n in range(many)}
    words, kept = search.fitting(query, terms)
    assert query.startswith(words)
    assert search._most_tokens(words) >= search.MOST_CLAUSES // 2 - 20
    assert list(kept) == list(terms)[: len(kept)]
    assert search.MOST_CLAUSES - 20 <= search._most_tokens(words) + len(kept) <= search.MOST_CLAUSES


def test_a_word_that_comes_again_and_again_takes_no_room(caplog):
    words, kept = search.fitting("w " * 5000 + "x", TERMS)
    assert (words, kept) == ("w x", TERMS)
    assert "2 distinct words" in caplog.text
