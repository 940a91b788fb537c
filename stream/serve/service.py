"""What is open while the service runs: clients of the stores and of the models, and whether they have answered."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from stream import metrics
from stream.config import Settings
from stream.errors import ConfigurationError, StreamError
from stream.models.embeddings import EmbeddingClient
from stream.search.answer import Answer
from stream.search.request import LEGS, Request
from stream.search.searcher import Searcher
from stream.stores import Stores, open_stores

log = logging.getLogger(__name__)

FIRST = Request(query="first", mode="hybrid", k=1, strict=True, deadline=60)
LOOPBACK = ("127.0.0.1", "::1", "localhost")
PAUSE = 1.0  # seconds between two tries of the first query


@dataclass
class Service:
    """`unready` says why the service cannot take requests now; None if it can. `draining` is set at its end."""

    settings: Settings
    stores: Stores
    searcher: Searcher
    unready: str | None = "the models and the stores have not answered yet"
    draining: asyncio.Event = field(default_factory=asyncio.Event)

    async def warm(self) -> None:
        """Loads the sparse model and repeats a first query until both models and both stores have answered it.

        Raises `StreamError` if the model cannot be loaded.
        """
        await self.searcher.warm(LEGS["hybrid"])
        while self.unready:
            try:
                await self.searcher.search(FIRST)
            except StreamError as error:
                if self.unready != str(error):  # once, not each second
                    log.warning("not ready: %s", error)
                self.unready = str(error)
                await asyncio.sleep(PAUSE)
            else:
                self.unready = None
                log.info("ready")

    def drain(self) -> None:
        """No new requests are wanted; those in flight are finished."""
        self.unready = "the service is stopping"
        self.draining.set()


@asynccontextmanager
async def open_service(settings: Settings) -> AsyncIterator[Service]:
    """A service with clients that connect when they are first used, and are closed at the end."""
    async with open_stores(settings) as stores, EmbeddingClient(settings) as embedder:
        yield Service(settings, stores, Searcher(settings, stores, embedder))


def count_degraded(answer: Answer) -> None:
    """Counts the legs that an answer lacks."""
    for leg in answer.degraded:
        metrics.searches_degraded.labels(leg).inc()


def require_private(host: str, has_keys: bool) -> None:
    """Raises `ConfigurationError` unless the service has keys or listens on this machine only."""
    if not has_keys and host not in LOOPBACK:
        raise ConfigurationError(
            f"without keys the service listens on {LOOPBACK[0]} only, not on {host}: set STREAM_SERVE_KEYS to a file "
            "of keys, which `stream keys new` makes, or leave STREAM_SERVE_HOST unset"
        )
