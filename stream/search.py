"""Searching both stores: by words and their expansions in OpenSearch, by meaning in Neo4j."""

import asyncio
import hashlib
import logging
import re
from collections.abc import Mapping
from functools import cached_property

from cachetools import TTLCache

from stream.config import SearchMode, Settings
from stream.models.embeddings import EmbeddingClient
from stream.models.splade import SparseEncoder, SparseVector
from stream.stores import Stores
from stream.stores.base import Hit

log = logging.getLogger(__name__)

MOST_CLAUSES = (
    1000  # of one search: OpenSearch's indices.query.bool.max_clause_count is 1,024, each word and term is one
)
LONGEST_TOKEN = 255  # letters; OpenSearch's standard tokenizer cuts longer words into several
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
        words, terms = fitting(query, (await self.encode(query)).terms)
        return await self._stores.opensearch.search(words, terms, k)

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


def fitting(query: str, terms: Mapping[str, float]) -> tuple[str, Mapping[str, float]]:
    """A query and its terms, the heaviest first, as they are if OpenSearch takes so many clauses.

    Else its first words, each once, and its heaviest terms, with a warning. At least half of the clauses are for words.
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
        "the query is too long for one search: its first %d different words and its %d heaviest terms are searched for",
        *(len(words), len(heaviest)),
    )
    return first, heaviest


def _most_tokens(text: str) -> int:
    """How many tokens OpenSearch makes of a text, at most; in other scripts than Latin each character may be one."""
    ascii_words = re.findall(r"[0-9A-Za-z_]+", text)
    others = sum(not character.isascii() for character in text)
    return sum(1 + len(word) // LONGEST_TOKEN for word in ascii_words) + others
