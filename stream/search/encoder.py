"""Encodes queries as the stages encode chunks, each query once in a minute."""

import asyncio
from itertools import islice
from typing import TYPE_CHECKING

from async_lru import alru_cache

from stream import metrics
from stream.config import Settings
from stream.models.embeddings import EmbeddingClient
from stream.vectors import Vector

if TYPE_CHECKING:
    from stream.models.splade import SparseEncoder

CACHED = 1000  # queries of each model
SECONDS = 60.0


class QueryEncoder:
    """Both models, with a cache. Concurrent calls encode a query once; all must come from one event loop."""

    def __init__(self, settings: Settings, embedder: EmbeddingClient) -> None:
        self._settings = settings
        self._embedder = embedder
        self._one = asyncio.Lock()  # one query uses all cores; several at once take longer together than one by one
        self._encoder = alru_cache(self._load)
        self._vectors = alru_cache(CACHED, ttl=SECONDS)(self._embed)
        self._terms = alru_cache(CACHED, ttl=SECONDS)(self._expand)

    async def vector(self, query: str) -> Vector:
        """The dense vector (dimensions,) of a query."""
        metrics.queries_wanted.labels("dense").inc()
        return await self._vectors(query)

    async def terms(self, query: str) -> dict[str, float]:
        """The raw weights of a query's heaviest terms, the heaviest first."""
        metrics.queries_wanted.labels("splade").inc()
        return await self._terms(query)

    async def load(self) -> None:
        """Loads the sparse model, which takes seconds; `terms` does it too. Raises as `SparseEncoder` does."""
        await self._encoder()

    async def _embed(self, query: str) -> Vector:
        metrics.queries_encoded.labels("dense").inc()
        return await self._embedder.embed_query(query)

    async def _expand(self, query: str) -> dict[str, float]:
        encoder = await self._encoder()
        metrics.queries_encoded.labels("splade").inc()
        async with self._one:
            (vector,) = await asyncio.to_thread(encoder.encode, [query])
        scale = vector.norm if self._settings.splade_normalise else 1
        heaviest = islice(vector.terms.items(), self._settings.splade_query_terms)
        return {name: scale * weight for name, weight in heaviest}

    async def _load(self) -> "SparseEncoder":
        def load() -> "SparseEncoder":
            from stream.models.splade import SparseEncoder  # noqa: PLC0415 - only a search by terms pays for PyTorch

            return SparseEncoder(self._settings)

        return await asyncio.to_thread(load)
