"""Vectors that were made before: an unchanged text is not embedded again.

Neo4j has them under the chunk's name; `docs/decisions/0004-vectors-come-back-from-neo4j.md` says why not Kafka. A
vector is the same if the text, the model, its revision and its parameters are. Nothing depends on it: while Neo4j does
not answer, texts are embedded as if they were new.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from stream import metrics
from stream.config import Settings
from stream.errors import Outage
from stream.records import Chunk, Provenance, sha256
from stream.stores.base import NoGeneration
from stream.stores.neo4j import Neo4jStore

PATIENCE = 5.0  # seconds for Neo4j to answer
REST = 30.0  # seconds without questions after it has not

log = logging.getLogger(__name__)


class Reuse:
    """Asks Neo4j for the vectors of chunks."""

    def __init__(self, store: Neo4jStore, provenance: Provenance, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._provenance = provenance
        self._clock = clock
        self._rests_until = 0.0

    async def __call__(self, chunks: Sequence[Chunk]) -> list[str | None]:
        """The vector of each chunk as it travels, None where there is none of this very text.

        A flow without a live generation has none yet.
        """
        if self._clock() < self._rests_until:
            return [None] * len(chunks)
        try:
            async with asyncio.timeout(PATIENCE):
                found = await self._store.vectors([chunk["chunk_id"] for chunk in chunks], self._provenance)
        except NoGeneration:
            self._rests_until = self._clock() + REST
            return [None] * len(chunks)
        except (Outage, TimeoutError) as error:
            self._rests_until = self._clock() + REST
            log.warning("unchanged texts are embedded again for %g s: %s", REST, str(error) or "Neo4j does not answer")
            return [None] * len(chunks)
        vectors = [_of(chunk, *found.get(chunk["chunk_id"], ("", ""))) for chunk in chunks]
        metrics.embed_reused.inc(len(vectors) - vectors.count(None))
        return vectors


def _of(chunk: Chunk, digest: str, vector: str) -> str | None:
    return vector if digest == sha256(chunk["text"]) else None


@asynccontextmanager
async def open_reuse(settings: Settings, provenance: Provenance) -> AsyncIterator[Reuse]:
    """Raises `ConfigurationError` if Neo4j does not let us in; that it is down does not matter."""
    async with Neo4jStore(settings) as store:
        try:
            await store.examine()
        except Outage as error:
            log.warning("%s", error)
        yield Reuse(store, provenance)
