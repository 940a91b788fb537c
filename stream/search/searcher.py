"""Searches both stores: by words and SPLADE terms in OpenSearch, by dense vectors in Neo4j."""

import asyncio
import hashlib
import logging
import re
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from cachetools import TTLCache

from stream.config import SearchMode, Settings
from stream.models.embeddings import EmbeddingClient
from stream.stores import Stores
from stream.stores.base import Hit

if TYPE_CHECKING:
    from stream.models.splade import SparseEncoder, SparseVector

log = logging.getLogger(__name__)

# Each word and each term is one clause; OpenSearch's indices.query.bool.max_clause_count is 1,024.
MOST_CLAUSES = 1000
LONGEST_TOKEN = 255  # letters; OpenSearch's standard tokenizer splits longer words
CACHED_QUERIES = 10_000
CACHE_SECONDS = 60.0


class Searcher:
    """Encodes queries as the stages encode documents. Caches an encoded query for a minute, by its hash."""

    def __init__(self, settings: Settings, stores: Stores, embedder: EmbeddingClient) -> None:
        self._settings = settings
        self._stores = stores
        self._embedder = embedder
        self._encoded: TTLCache[bytes, SparseVector] = TTLCache(CACHED_QUERIES, CACHE_SECONDS)

    async def search(self, query: str, mode: SearchMode, k: int = 10) -> list[Hit]:
        """The k best chunks.

        `bm25`: words of the text; `splade`: the dot product of the raw sparse vectors; `lexical`: both in one query;
        `dense`: nearest vectors by cosine.
        """
        if mode == "dense":
            asked = await self._embedder.embed_query(query)
            return await self._stores.neo4j.nearest(asked, k, self._embedder.provenance)
        opensearch = self._stores.opensearch
        if mode == "bm25":
            words, _ = fitting(query, {})
            return await opensearch.search_words(words, k)
        vector = await self.encode(query)
        if mode == "splade":
            scale = vector.norm if self._settings.splade_normalise else 1
            return await opensearch.search_terms({term: scale * weight for term, weight in vector.terms.items()}, k)
        words, terms = fitting(query, vector.terms)
        return await opensearch.search(words, terms, k)

    async def encode(self, query: str) -> "SparseVector":
        """The query's sparse vector, from the cache if it was encoded within the last minute."""
        key = hashlib.sha256(query.encode()).digest()
        vector = self._encoded.get(key)
        if vector is None:
            (vector,) = await asyncio.to_thread(self._encoder.encode, [query])
            self._encoded[key] = vector
        return vector

    @cached_property
    def _encoder(self) -> "SparseEncoder":
        from stream.models.splade import SparseEncoder  # noqa: PLC0415 - only a search by terms pays for PyTorch

        return SparseEncoder(self._settings)


def fitting(query: str, terms: Mapping[str, float]) -> tuple[str, Mapping[str, float]]:
    """Returns the query and its terms (the heaviest first) unchanged if they need at most `MOST_CLAUSES` clauses.

    Otherwise it warns and returns the first distinct words and the heaviest terms. Words get at least half of the
    clauses.
    """
    tokens = _most_tokens(query)
    if tokens + len(terms) <= MOST_CLAUSES:
        return query, terms
    room = max(MOST_CLAUSES - len(terms), MOST_CLAUSES // 2)
    words: list[str] = []
    for word in dict.fromkeys(query.split()):
        room -= _most_tokens(word)
        if room < 0:
            break
        words.append(word)
    first = " ".join(words)
    heaviest = dict(list(terms.items())[: MOST_CLAUSES - _most_tokens(first)])
    log.warning(
        "the query is too long: only its first %d distinct words and its %d heaviest terms are searched for",
        *(len(words), len(heaviest)),
    )
    return first, heaviest


def _most_tokens(text: str) -> int:
    """The most tokens that OpenSearch makes of a text; each character that is not ASCII may be one."""
    ascii_words = re.findall(r"[0-9A-Za-z_]+", text)
    others = sum(not character.isascii() for character in text)
    return sum(1 + len(word) // LONGEST_TOKEN for word in ascii_words) + others
