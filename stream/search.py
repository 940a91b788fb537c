"""Searching both stores: by words and their expansions in OpenSearch, by meaning in Neo4j."""

import asyncio
import hashlib
from functools import cached_property

from cachetools import TTLCache

from stream.config import SearchMode, Settings
from stream.models.embeddings import EmbeddingClient
from stream.models.splade import SparseEncoder, SparseVector
from stream.stores import Stores
from stream.stores.base import Hit

CACHED_QUERIES = 10_000
CACHE_SECONDS = 60.0


class Searcher:
    """Encodes queries as the stages encode documents. An encoded query is kept for a minute under its hash."""

    def __init__(self, settings: Settings, stores: Stores, embedder: EmbeddingClient) -> None:
        self._settings = settings
        self._stores = stores
        self._embedder = embedder
        self._encoded: TTLCache[bytes, SparseVector] = TTLCache(CACHED_QUERIES, CACHE_SECONDS)

    async def search(self, query: str, mode: SearchMode, k: int = 10) -> list[Hit]:
        """The k best chunks. `lexical`: SPLADE terms and BM25 in one query; `dense`: nearest vectors by cosine."""
        if mode == "dense":
            asked = await self._embedder.embed_query(query)
            return await self._stores.neo4j.nearest(asked, k, self._embedder.provenance)
        vector = await self.encode(query)
        return await self._stores.opensearch.search(query, vector.terms, k)

    async def encode(self, query: str) -> SparseVector:
        """The query's sparse vector, from the cache if it was encoded within the last minute."""
        key = hashlib.sha256(query.encode()).digest()
        vector = self._encoded.get(key)
        if vector is None:
            (vector,) = await asyncio.to_thread(self._encoder.encode, [query])
            self._encoded[key] = vector
        return vector

    @cached_property
    def _encoder(self) -> SparseEncoder:
        return SparseEncoder(self._settings)
