"""The two stores: Neo4j for the vectors, OpenSearch for the terms and the text."""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from stream.config import Settings
from stream.errors import StreamError
from stream.stores.base import FIRST, Generation, Shown, Store
from stream.stores.neo4j import Neo4jStore
from stream.stores.opensearch import OpenSearchStore


@dataclass(slots=True)
class LiveIndexes:
    """What the searches of a flow use. During a swap, the two indexes may belong to different generations.

    The alias points to `opensearch_index`. An index is None if nothing is live in its store.
    """

    opensearch_alias: str
    opensearch_index: str | None = None
    neo4j_index: str | None = None


@dataclass(frozen=True)
class Stores:
    """Both stores, open."""

    neo4j: Neo4jStore
    opensearch: OpenSearchStore

    @property
    def both(self) -> tuple[Store, Store]:
        """Both, for what is done to each of them."""
        return self.neo4j, self.opensearch

    def of(self, legs: Iterable[str]) -> list[Store]:
        """The stores that these legs of a search ask."""
        asked = set(legs)
        needed: list[Store] = [self.opensearch] if asked - {"dense"} else []
        return [*needed, self.neo4j] if "dense" in asked else needed

    async def shown(self, legs: Iterable[str], chunk_ids: Sequence[str], generation: int) -> dict[str, Shown]:
        """The texts of chunks from the stores of these legs; each store may have chunks that the other lacks yet."""
        found: dict[str, Shown] = {}
        for store in self.of(legs):
            if missing := [chunk_id for chunk_id in chunk_ids if chunk_id not in found]:
                found |= await store.shown(missing, generation)
        return found

    async def set_up(self) -> None:
        """Creates what is missing in each."""
        for store in self.both:
            await store.set_up()

    async def answer(self) -> None:
        """Returns if both pass `examine`; otherwise raises its error."""
        for store in self.both:
            await store.examine()

    async def generations(self) -> list[Generation]:
        """The generations of all flows by number, and the stores in which each is live.

        OpenSearch's alias and Neo4j's pointer determine what is live. The flow without a name may have no pointer: then
        its first generation is live in Neo4j.
        """
        found = {generation.number: generation for generation in await self.opensearch.generations()}
        pointers = {pointer.flow: pointer for pointer in await self.neo4j.pointers()}
        if FIRST in found and found[FIRST].live and not found[FIRST].flow and "" not in pointers:
            pointers[""] = Generation(FIRST, "", frozenset({self.neo4j.name}))
        for number, pointer in ((pointer.number, pointer) for pointer in pointers.values()):
            built = found.get(number, replace(pointer, live_in=frozenset(), built=False))
            found[number] = replace(built, live_in=built.live_in | pointer.live_in, swapping=pointer.swapping)
        return [found[number] for number in sorted(found)]

    async def live_indexes(self) -> dict[str, LiveIndexes]:
        """The live indexes by flow, for clients that must know their names; the flow without a name is ""."""
        found: dict[str, LiveIndexes] = {}
        for one in await self.generations():
            if one.live:
                indexes = found.setdefault(one.flow, LiveIndexes(self.opensearch.alias(one.flow)))
                if self.neo4j.name in one.live_in:
                    indexes.neo4j_index = self.neo4j.index(one.number)
                if self.opensearch.name in one.live_in:
                    indexes.opensearch_index = self.opensearch.index(one.number)
        return found

    async def drop(self, number: int) -> None:
        """Deletes a generation; raises `StreamError` if it is live in either store.

        OpenSearch comes last: its index marks the number as taken.
        """
        for store in self.both:
            if any(generation.live for generation in await self.generations() if generation.number == number):
                raise StreamError(f"generation {number} has become live: it is not deleted")
            await store.drop(number)


@asynccontextmanager
async def open_stores(settings: Settings) -> AsyncIterator[Stores]:
    """Both stores, connected when first used and closed at the end."""
    async with Neo4jStore(settings) as neo4j, OpenSearchStore(settings) as opensearch:
        yield Stores(neo4j, opensearch)
