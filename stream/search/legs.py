"""The legs of a search: what each finds, with raw scores."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stream.config import Settings
from stream.errors import StreamError
from stream.models.embeddings import EmbeddingClient
from stream.search import dsl, filters
from stream.search.clock import Clock
from stream.search.encoder import QueryEncoder
from stream.search.request import Leg, Request
from stream.stores import Stores
from stream.stores.base import Condition

NAMED = {"include_named_queries_score": "true"}


@dataclass(frozen=True, slots=True)
class Found:
    """Chunk_ids with raw scores, the best first, and the doc_id of each."""

    hits: list[tuple[str, float]]
    documents: Mapping[str, str]

    def rank(self, chunk_id: str) -> int | None:
        """The rank of a chunk, from 1."""
        return next((n for n, (found, _) in enumerate(self.hits, start=1) if found == chunk_id), None)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What legs that are asked together found, and why others of them found nothing."""

    found: dict[Leg, Found]
    failed: dict[Leg, StreamError]


class Legs:
    """Asks the legs of a request in one generation. Each call raises `StreamError` if its leg cannot answer."""

    def __init__(self, settings: Settings, stores: Stores, embedder: EmbeddingClient) -> None:
        self._stores = stores
        self._embedder = embedder
        self.normalised = settings.splade_normalise
        self.encoder = QueryEncoder(settings, embedder)

    async def ask(self, request: Request, asked: tuple[Leg, ...], generation: int, clock: Clock) -> Outcome:
        """One leg alone, or both legs of `lexical` in one query."""
        if len(asked) > 1:
            return await self._lexical(request, generation, clock)
        (leg,) = asked
        search = {"bm25": self._bm25, "splade": self._splade, "dense": self._dense}[leg]
        return Outcome({leg: await search(request, generation, clock)}, {})

    async def query(self, request: Request, leg: Leg) -> dsl.Query:
        """The query of `bm25` or `splade`."""
        if leg == "bm25":
            return dsl.words(request.query)
        return dsl.terms(await self.terms(request), self.normalised)

    async def terms(self, request: Request) -> dict[str, float]:
        """The terms that `splade` searches for, with the query's raw weights, the heaviest first."""
        terms = await self.encoder.terms(request.query)
        return {term: weight for term, weight in terms.items() if term not in request.without_terms}

    async def _bm25(self, request: Request, generation: int, clock: Clock) -> Found:
        body = dsl.body([dsl.words(request.query)], opensearch_condition(request), request.depth)
        with clock.step("search bm25"):
            return _found(await self._stores.opensearch.search(body, generation, preference=request.query))

    async def _splade(self, request: Request, generation: int, clock: Clock) -> Found:
        with clock.step("encode splade"):
            terms = await self.terms(request)
        condition, depth = opensearch_condition(request), request.depth
        with clock.step("search splade"):
            quick = dsl.in_two_phases(terms, self.normalised, condition, depth)
            whole = dsl.body([dsl.terms(terms, self.normalised)], condition, depth)
            found = _found(await self._stores.opensearch.search(quick, generation, preference=request.query))
            if len(found.hits) < depth and quick != whole:  # then chunks with light terms only are hits too
                found = _found(await self._stores.opensearch.search(whole, generation, preference=request.query))
        return found

    async def _lexical(self, request: Request, generation: int, clock: Clock) -> Outcome:
        try:
            with clock.step("encode splade"):
                terms = await self.terms(request)
        except StreamError as error:
            return Outcome({"bm25": await self._bm25(request, generation, clock)}, {"splade": error})
        queries = [
            dsl.weighted(dsl.words(request.query, dsl.MOST_CLAUSES - len(terms)), request.weight("bm25")),
            dsl.weighted(dsl.terms(terms, self.normalised), request.weight("splade")),
        ]
        body = dsl.body(queries, opensearch_condition(request), request.depth)
        with clock.step("search bm25 and splade"):
            rows = dsl.rows(await self._stores.opensearch.search(body, generation, preference=request.query, **NAMED))
        documents = {row.chunk_id: row.doc_id for row in rows}
        found: dict[Leg, Found] = {}
        for leg in request.legs:
            hits = [(row.chunk_id, row.named[leg]) for row in rows if leg in row.named]
            found[leg] = Found(sorted(hits, key=lambda hit: (-hit[1], hit[0])), documents)
        return Outcome(found, {})

    async def _dense(self, request: Request, generation: int, clock: Clock) -> Found:
        with clock.step("encode dense"):
            vector = await self.encoder.vector(request.query)
        condition = neo4j_condition(request)
        with clock.step("search dense"):
            near = await self._stores.neo4j.nearest(
                vector, request.depth, self._embedder.provenance, generation, condition
            )
        return Found([(one.chunk_id, one.cosine) for one in near], {one.chunk_id: one.doc_id for one in near})


def _found(answer: Mapping[str, Any]) -> Found:
    rows = dsl.rows(answer)
    return Found([(row.chunk_id, row.score) for row in rows], {row.chunk_id: row.doc_id for row in rows})


def opensearch_condition(request: Request) -> dsl.Query | None:
    """The request's filter for OpenSearch."""
    return filters.opensearch(request.filter) if request.filter else None


def neo4j_condition(request: Request) -> Condition | None:
    """The request's filter for Neo4j."""
    if not request.filter:
        return None
    return Condition(filters.lucene(request.filter), *filters.cypher(request.filter, "node"))
