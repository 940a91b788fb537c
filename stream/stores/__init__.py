"""The two stores: Neo4j for the vectors, OpenSearch for the terms and the text."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from stream.config import Settings
from stream.stores.base import Store
from stream.stores.neo4j import Neo4jStore
from stream.stores.opensearch import OpenSearchStore


@dataclass(frozen=True)
class Stores:
    """Both stores, open."""

    neo4j: Neo4jStore
    opensearch: OpenSearchStore

    @property
    def both(self) -> tuple[Store, Store]:
        """For what is done to either."""
        return self.neo4j, self.opensearch

    async def set_up(self) -> None:
        """Makes what is missing in either."""
        for store in self.both:
            await store.set_up()

    async def answer(self) -> None:
        """Returns if both are there with what the writing needs; raises what is wrong with one of them."""
        for store in self.both:
            await store.examine()


@asynccontextmanager
async def open_stores(settings: Settings) -> AsyncIterator[Stores]:
    """Both stores, connected when first used and closed at the end."""
    async with Neo4jStore(settings) as neo4j, OpenSearchStore(settings) as opensearch:
        yield Stores(neo4j, opensearch)
