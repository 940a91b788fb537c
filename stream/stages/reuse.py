"""Reuses the vectors of unchanged texts.

Neo4j stores them by chunk_id; `docs/decisions/0004-vectors-come-back-from-neo4j.md` says why not Kafka. A vector is
reused only if the text, the model, its revision and its parameters are equal. Reuse is optional: while Neo4j does not
answer, every text is embedded.
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

PATIENCE = 5.0  # seconds until a query times out
PAUSE = 30.0  # seconds without queries after one that failed

log = logging.getLogger(__name__)


class Reuse:
    """Asks Neo4j for the vectors of chunks."""

    def __init__(self, store: Neo4jStore, provenance: Provenance, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._provenance = provenance
        self._clock = clock
        self._paused_until = 0.0

    async def __call__(self, chunks: Sequence[Chunk]) -> list[bytes | None]:
        """The packed vector of each chunk; None where Neo4j has no vector of exactly this text.

        A flow without a live generation has no vectors yet.
        """
        if self._clock() < self._paused_until:
            return [None] * len(chunks)
        try:
            async with asyncio.timeout(PATIENCE):
                found = await self._store.vectors([chunk["chunk_id"] for chunk in chunks], self._provenance)
        except NoGeneration:
            self._paused_until = self._clock() + PAUSE
            return [None] * len(chunks)
        except (Outage, TimeoutError) as error:
            self._paused_until = self._clock() + PAUSE
            log.warning("for %g s unchanged texts are embedded again: %s", PAUSE, str(error) or "Neo4j does not answer")
            return [None] * len(chunks)
        vectors = [_of(chunk, *found.get(chunk["chunk_id"], ("", b""))) for chunk in chunks]
        metrics.embed_reused.inc(len(vectors) - vectors.count(None))
        return vectors


def _of(chunk: Chunk, digest: str, vector: bytes) -> bytes | None:
    return vector if digest == sha256(chunk["text"]) else None


@asynccontextmanager
async def open_reuse(settings: Settings, provenance: Provenance) -> AsyncIterator[Reuse]:
    """Raises `ConfigurationError` if Neo4j refuses the credentials. If Neo4j is down, only warns."""
    async with Neo4jStore(settings) as store:
        try:
            await store.examine()
        except Outage as error:
            log.warning("%s", error)
        yield Reuse(store, provenance)
