"""If these fail, a query is encoded again and again, or its terms do not have the model's weights."""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from prometheus_client import REGISTRY
from support import sparse_vector, until

from stream.config import Settings
from stream.errors import Outage, Refused
from stream.models import splade
from stream.models.terms import SparseVector
from stream.search import encoder
from stream.search.encoder import QueryEncoder

VECTOR = sparse_vector({"socket": 0.8, "port": 0.6}, 5.0)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The queries that the sparse model has encoded."""
    queries: list[str] = []

    class Encoder:
        def __init__(self, settings: Settings) -> None:
            queries.append("loaded")

        def encode(self, texts: list[str]) -> list[SparseVector]:
            queries.extend(texts)
            return [VECTOR for _ in texts]

    monkeypatch.setattr(splade, "SparseEncoder", Encoder)
    return queries


class Embedder:
    """Embeds a query as its length; fails as often as it is told, and refuses empty queries as a server does."""

    def __init__(self, failures: int = 0) -> None:
        self.calls: list[list[str]] = []
        self.failures = failures

    @property
    def queries(self) -> list[str]:
        return [query for call in self.calls for query in call]

    async def embed_queries(self, queries: Sequence[str]) -> list[np.ndarray]:
        self.calls.append(list(queries))
        await asyncio.sleep(0)
        if self.failures:
            self.failures -= 1
            raise Outage("the server is down")
        if "" in queries:
            raise Refused("it is empty")
        return [np.array([len(query)]) for query in queries]


def made(embedder: object = None, **settings: object) -> QueryEncoder:
    return QueryEncoder(Settings(_env_file=None, **settings), embedder or SimpleNamespace())


async def test_concurrent_and_later_calls_encode_a_query_once(encoded):
    embedder = Embedder()
    queries = made(embedder)
    await asyncio.gather(*(queries.terms("a socket") for _ in range(10)), *(queries.vector("a") for _ in range(10)))
    await queries.terms("a socket")
    await queries.vector("a")
    assert encoded == ["loaded", "a socket"]
    assert embedder.queries == ["a"]


async def test_other_words_are_another_query(encoded):
    queries = made()
    for query in ("a socket", "A socket", "a socket "):
        await queries.terms(query)
    assert encoded == ["loaded", "a socket", "A socket", "a socket "]


async def test_a_query_is_encoded_again_when_its_time_is_over(encoded, monkeypatch):
    monkeypatch.setattr(encoder, "SECONDS", 0.05)
    queries = made()

    async def again() -> bool:
        await queries.terms("a socket")
        return encoded == ["loaded", "a socket", "a socket"]

    await until(again, every=0.02)


async def test_a_failure_is_not_cached():
    embedder = Embedder(failures=1)
    queries = made(embedder)
    with pytest.raises(Outage):
        await queries.vector("a")
    assert await queries.vector("a") == np.array([1])


async def test_a_caller_that_gives_up_does_not_take_the_query_from_the_others(encoded):
    embedder = Embedder()
    queries = made(embedder)
    first, second = (asyncio.create_task(queries.vector("a")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == np.array([1])
    assert embedder.queries == ["a"]


@pytest.mark.parametrize(("normalise", "scale"), [(True, 5.0), (False, 1.0)])
async def test_weights_are_raw_whatever_is_stored(encoded, normalise, scale):
    queries = made(splade_normalise=normalise)
    assert await queries.terms("q") == pytest.approx({"socket": 0.8 * scale, "port": 0.6 * scale})


async def test_only_the_heaviest_terms_are_searched_for(encoded):
    assert list(await made(splade_query_terms=1).terms("q")) == ["socket"]


async def test_hits_of_the_cache_can_be_counted(encoded):
    def count(name: str) -> float:
        return REGISTRY.get_sample_value(f"stream_queries_{name}_total", {"model": "splade"}) or 0

    before = count("wanted"), count("encoded")
    queries = made()
    for _ in range(3):
        await queries.terms("a socket")
    assert (count("wanted") - before[0], count("encoded") - before[1]) == (3, 1)


async def test_queries_that_come_together_are_encoded_in_one_call(encoded):
    embedder = Embedder()
    queries = made(embedder)
    vectors = await asyncio.gather(*(queries.vector("q" * n) for n in range(1, 4)))
    assert [list(vector) for vector in vectors] == [[1], [2], [3]]
    assert embedder.calls == [["q", "qq", "qqq"]]


async def test_a_query_that_comes_meanwhile_waits_for_the_next_call():
    embedder = Embedder()
    queries = made(embedder)
    first = asyncio.create_task(queries.vector("a"))

    async def begun() -> bool:
        return bool(embedder.calls)

    await until(begun, every=0)
    late = await asyncio.gather(queries.vector("b"), queries.vector("c"), first)
    assert len(late) == 3
    assert embedder.calls == [["a"], ["b", "c"]]


async def test_a_query_that_the_model_refuses_does_not_fail_the_others():
    queries = made(Embedder())
    found = await asyncio.gather(queries.vector("a"), queries.vector(""), queries.vector("b"), return_exceptions=True)
    assert [type(one) for one in found] == [np.ndarray, Refused, np.ndarray]
