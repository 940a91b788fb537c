"""Encodes queries as the stages encode chunks, each query once in a minute."""

import asyncio
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

from async_lru import alru_cache

from stream import metrics
from stream.bisection import isolate
from stream.config import Settings
from stream.errors import Refused
from stream.models.embeddings import EmbeddingClient
from stream.records import Provenance, Rejected
from stream.search.request import Model
from stream.search.together import Together
from stream.vectors import Vector

if TYPE_CHECKING:
    from stream.models.splade import SparseEncoder
    from stream.models.terms import SparseVector

CACHED = 1000  # queries of each model
SECONDS = 60.0


class QueryEncoder:
    """Both models, with a cache. Concurrent calls encode a query once, and different queries together.

    All calls must come from one event loop.
    """

    def __init__(self, settings: Settings, embedder: EmbeddingClient) -> None:
        self._settings = settings
        self._embedder = embedder
        self._encoder = alru_cache(self._load)
        self._vectors = alru_cache(CACHED, ttl=SECONDS)(Together(self._embed).__call__)
        self._terms = alru_cache(CACHED, ttl=SECONDS)(Together(self._expand).__call__)

    async def vector(self, query: str) -> Vector:
        """The dense vector (dimensions,) of a query."""
        metrics.queries_wanted.labels("dense").inc()
        return await self._vectors(query)

    async def terms(self, query: str) -> dict[str, float]:
        """The raw weights of a query's heaviest terms, the heaviest first."""
        metrics.queries_wanted.labels("splade").inc()
        return await self._terms(query)

    async def models(self) -> dict[Model, Provenance]:
        """What makes the queries' vectors and terms, by leg; loads the sparse model. Raises as `SparseEncoder` does."""
        return {"dense": self._embedder.provenance, "splade": (await self._encoder()).provenance}

    async def load(self) -> None:
        """Loads the sparse model, which takes seconds; `terms` does it too. Raises as `SparseEncoder` does."""
        await self._encoder()

    async def _embed(self, queries: Sequence[str]) -> list[Vector | Exception]:
        metrics.queries_encoded.labels("dense").inc(len(queries))
        vectors = await isolate(queries, self._embedder.embed_queries, "refused-by-model")
        return [Refused(one.detail) if isinstance(one, Rejected) else one for one in vectors]

    async def _expand(self, queries: Sequence[str]) -> list[dict[str, float]]:
        encoder = await self._encoder()
        metrics.queries_encoded.labels("splade").inc(len(queries))
        return [self._heaviest(vector) for vector in await asyncio.to_thread(encoder.encode, list(queries))]

    def _heaviest(self, vector: "SparseVector") -> dict[str, float]:
        scale = vector.norm if self._settings.splade_normalise else 1
        heaviest = islice(vector.terms.items(), self._settings.splade_query_terms)
        return {name: scale * weight for name, weight in heaviest}

    async def _load(self) -> "SparseEncoder":
        def load() -> "SparseEncoder":
            from stream.models.splade import SparseEncoder  # noqa: PLC0415 - only a search by terms pays for PyTorch

            return SparseEncoder(self._settings)

        return await asyncio.to_thread(load)
