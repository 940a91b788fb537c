"""Answers a request: asks its legs at the same time under one deadline, and fuses what they find."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from stream.config import Settings
from stream.errors import ConfigurationError, DeadlineExceeded, StreamError
from stream.models.embeddings import EmbeddingClient
from stream.records import Provenance
from stream.search import cursor, explain, filters
from stream.search.answer import Answer, Detail, Hit, Made, Why
from stream.search.choices import Choices, choices
from stream.search.clock import Clock
from stream.search.filters import Filter
from stream.search.fusion import Fused
from stream.search.legs import Legs, Outcome
from stream.search.ranking import Ranking
from stream.search.request import LEGS, Leg, Model, Request
from stream.search.snippets import snippet
from stream.stores import Stores
from stream.stores.base import Origin, Shown, Store

CHUNK_SECONDS = 5.0  # to find one chunk
AFTER_DEADLINE = 1.0  # seconds for reading the texts of what was found in time


class Searcher:
    """Searches the configured generation, or the live one. All calls must come from one event loop."""

    def __init__(self, settings: Settings, stores: Stores, embedder: EmbeddingClient) -> None:
        self._stores = stores
        self._legs = Legs(settings, stores, embedder)
        self._left: set[asyncio.Task[int]] = set()
        self._complete: set[tuple[str, int]] = set()  # stores and generations without chunks that filters miss

    async def warm(self, wanted: Iterable[Leg]) -> None:
        """Loads what these legs need in this process, which takes seconds for SPLADE and nothing for the others."""
        if "splade" in wanted:
            await self._legs.encoder.load()

    async def models(self) -> dict[Model, Provenance]:
        """The models that encode queries, as `QueryEncoder.models`."""
        return await self._legs.encoder.models()

    async def search(self, request: Request) -> Answer:
        """The page of hits that is asked for.

        Raises `StreamError` if no leg answers by the deadline, or, if the request is strict, if any leg does not;
        `CursorError` for a cursor of another request or of another generation, or one that was changed.
        """
        clock = Clock(request.deadline)
        ranking = await self._rank(request, clock)
        start = cursor.decode(request.cursor, request, ranking.generation) if request.cursor else 0
        end = start + request.k
        groups = ranking.groups
        page = [hit for group in groups[start:end] for hit in group]
        terms = await self._legs.terms(request) if "splade" in ranking.found else {}
        return Answer(
            hits=await self._hits(ranking, page, terms, clock),
            generation=ranking.generation,
            offset=start,
            reachable=len(groups),
            cursor=cursor.encode(request, end, ranking.generation) if end < len(groups) else None,
            degraded={leg: str(error) for leg, error in ranking.failed.items()},
            expansion=terms,
            timings=clock.timings,
        )

    async def search_all(self, requests: Sequence[Request]) -> list[Answer | StreamError]:
        """The answer, or the error, of each request, in order; each model encodes their queries in one call."""
        encoder = self._legs.encoder
        dense = {request.query for request in requests if "dense" in request.legs}
        sparse = {request.query for request in requests if "splade" in request.legs}
        # They begin in one step of the event loop, and so in one call; each search then waits for its own query.
        encoding = asyncio.gather(*map(encoder.vector, dense), *map(encoder.terms, sparse), return_exceptions=True)
        try:
            answers = await asyncio.gather(*map(self.search, requests), return_exceptions=True)
        finally:
            encoding.cancel()
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, StreamError):
                raise answer
        return answers  # type: ignore[return-value] # the loop has checked it

    async def why(self, request: Request, chunk_id: str) -> Why:
        """Where a chunk comes for a request, and why: its rank and raw score in each leg.

        Raises as a strict `search` does, because a missing leg would change the ranks.
        """
        clock = Clock(request.deadline)
        ranking = await self._rank(request.model_copy(update={"strict": True}), clock)
        return await explain.why(self._stores, self._legs, ranking, chunk_id)

    async def generation(self) -> int:
        """The searched generation. Raises `StreamError` if no store knows it."""
        return await self._generation(LEGS["hybrid"], Clock(CHUNK_SECONDS))

    async def chunk(self, chunk_id: str) -> Shown | None:
        """A chunk of the searched generation; None if it has none with this ID. Raises `StreamError`."""
        return await self._chunk(chunk_id, await self.generation())

    async def _chunk(self, chunk_id: str, generation: int) -> Shown | None:
        return (await self._stores.shown(LEGS["hybrid"], [chunk_id], generation)).get(chunk_id)

    async def detail(self, chunk_id: str, condition: Filter | None = None) -> Detail | None:
        """A chunk with its origins; None without one that the condition takes. Raises as `chunk`.

        A store that does not answer in time leaves its origin out.
        """
        generation = await self.generation()
        chunk = await self._chunk(chunk_id, generation)
        if chunk is None or not filters.takes(condition, chunk):
            return None
        stores: dict[Model, Store] = {"dense": self._stores.neo4j, "splade": self._stores.opensearch}
        origins = await asyncio.gather(*(self._origin(store, chunk, generation) for store in stores.values()))
        made = {
            model: Made(**origin.provenance) if origin and origin.provenance else None
            for model, origin in zip(stores, origins, strict=True)
        }
        positions = [origin.position for origin in origins[::-1] if origin]  # the text is OpenSearch's, if it has it
        return Detail(**asdict(chunk), provenance=made, position=next(iter(positions), None))

    async def _origin(self, store: Store, chunk: Shown, generation: int) -> Origin | None:
        try:
            async with asyncio.timeout(CHUNK_SECONDS):
                origin = await store.origin(chunk.chunk_id, generation)
        except (StreamError, TimeoutError):
            return None
        return origin if origin and origin.version == chunk.version else None

    async def choices(self, condition: Filter | None) -> Choices:
        """What the chunks that a condition takes can be filtered by. Raises `StreamError`."""
        generation = await self.generation()
        await self._require_facets(["bm25"], generation)
        return await choices(self._stores.opensearch, condition, generation)

    async def _rank(self, request: Request, clock: Clock) -> Ranking:
        generation = await self._generation(request.legs, clock)
        jobs = [request.legs] if request.mode == "lexical" else [(leg,) for leg in request.legs]
        asked = [(job, asyncio.create_task(self._ask(request, job, generation, clock))) for job in jobs]
        await asyncio.wait([task for _, task in asked], timeout=clock.left)
        outcomes = [_outcome(request, job, task) for job, task in asked]
        with clock.step("fuse"):
            ranking = Ranking.of(request, generation, outcomes)
        if ranking.failed and (request.strict or not ranking.found):
            raise min(ranking.failed.values(), key=lambda error: not isinstance(error, ConfigurationError))
        return ranking

    async def _ask(self, request: Request, asked: tuple[Leg, ...], generation: int, clock: Clock) -> Outcome:
        if request.filter:
            await self._require_facets(asked, generation)
        return await self._legs.ask(request, asked, generation, clock)

    async def _generation(self, legs: Iterable[Leg], clock: Clock) -> int:
        """The generation that every leg searches: the live one, by the first answer of the stores that the legs need.

        Both stores have the live generation and, during a swap, the next one too.
        """
        asked = [asyncio.create_task(store.live()) for store in self._stores.of(legs)]
        error: StreamError = DeadlineExceeded(f"no store has answered within {clock.seconds:g} s")
        try:
            with clock.step("generation"):
                for task in asyncio.as_completed(asked, timeout=clock.left):
                    try:
                        return await task
                    except StreamError as failure:
                        error = failure
                    except TimeoutError:
                        break
        finally:
            for task in asked:
                self._leave(task)
        raise error

    def _leave(self, task: "asyncio.Task[int]") -> None:
        """Lets a task end by itself: to cancel a query of Neo4j costs its connection."""
        self._left.add(task)
        task.add_done_callback(self._left.discard)
        task.add_done_callback(_ignore)

    async def _require_facets(self, asked: Sequence[Leg], generation: int) -> None:
        """Raises `ConfigurationError` if a store of these legs has chunks that filters do not find."""
        for store in self._stores.of(asked):
            if (store.name, generation) in self._complete:
                continue
            if missed := await store.unfiltered(generation):
                raise ConfigurationError(
                    f"{store.name} has {missed:,} chunks that an earlier release stored, and filters do not find them: "
                    "`stream reindex start` brings them over"
                )
            self._complete.add((store.name, generation))

    async def _hits(
        self, ranking: Ranking, page: Sequence[Fused], terms: Mapping[str, float], clock: Clock
    ) -> list[Hit]:
        """The page's hits with their texts. A chunk that was deleted since it was found is left out.

        So is one whose text the filter does not take: the stores may hold two versions of it, with different fields.
        """
        request = ranking.request
        chunk_ids = [fused.chunk_id for fused in page]
        with clock.step("texts"):
            try:
                async with asyncio.timeout(max(clock.left, AFTER_DEADLINE)):
                    shown = await self._stores.shown(ranking.found, chunk_ids, ranking.generation)
                    explained = {}
                    if request.explain:
                        explained = await explain.shares(self._stores, self._legs, ranking, chunk_ids)
            except TimeoutError:
                raise DeadlineExceeded("the stores have not answered with the texts of what was found") from None
        return [
            Hit(
                chunk_id=fused.chunk_id,
                doc_id=chunk.doc_id,
                version=chunk.version,
                score=fused.score,
                legs=fused.legs,
                text=chunk.text,
                snippet=snippet(chunk.text, terms, request.query),
                metadata=chunk.metadata,
                facet_json=chunk.facet_json,
                terms=explained.get(fused.chunk_id, {}),
            )
            for fused in page
            if (chunk := shown.get(fused.chunk_id)) and filters.takes(request.filter, chunk)
        ]


def _outcome(request: Request, asked: tuple[Leg, ...], task: "asyncio.Task[Outcome]") -> Outcome:
    if not task.done():
        _abandon(task)
        return Outcome(
            {}, {leg: DeadlineExceeded(f"{leg} has not answered within {request.deadline:g} s") for leg in asked}
        )
    if isinstance(error := task.exception(), StreamError):
        return Outcome({}, dict.fromkeys(asked, error))
    return task.result()


def _abandon(task: "asyncio.Task[Any]") -> None:
    """Cancels a task without waiting for it; its late error is of no interest."""
    task.cancel()
    task.add_done_callback(_ignore)


def _ignore(task: "asyncio.Task[Any]") -> None:
    """Reads a task's error, or asyncio logs it."""
    if not task.cancelled():
        task.exception()
