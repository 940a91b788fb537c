"""Watches the flow: each stage's lag, rate and age, the chunks in the stores, and the generations.

Kafka's clients stay open between two looks, because to open them costs more than a look.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import NamedTuple, Self, TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from stream.config import STAGES, Settings, StageName
from stream.errors import Outage, StreamError
from stream.kafka import clients, topics
from stream.operate import reindex
from stream.operate.status import Snapshot, StageStatus, snapshot
from stream.stores import Stores

RATE_SECONDS = 10.0  # the time of which a rate is the mean
STORES_SECONDS = 5.0  # between two questions to the stores: OpenSearch makes all writes searchable to count them
PATIENCE = 5.0  # seconds until a server that does not answer counts as down
READ_SECONDS = 1.0  # for the oldest records; those that are not read by then have no age in this look

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class StageFlow:
    """A stage as it moves.

    `done`, `total` and `lag` are offsets, as in `StageStatus`. `rate`: the offsets that the stage has committed a
    second, lately. `age`: the seconds since the timestamp of the oldest record that it has not committed, None if there
    is none. `dead_letters`: the records in its dead-letter topic, with the markers of those that were redriven.
    """

    stage: StageName
    topic: str
    total: int
    done: int
    lag: int
    rate: float
    age: float | None
    dead_letters: int


@dataclass(frozen=True, slots=True)
class GenerationFlow:
    """A generation. `lag`: of its index workers; None if its topics do not exist or Kafka does not answer."""

    number: int
    flow: str
    live_in: list[str]
    swapping: bool
    lag: int | None


@dataclass(frozen=True, slots=True)
class Look:
    """The flow at a moment (`at`, ms since the epoch). `error` says, in a sentence, which part is missing, and why.

    The chunks by store and the generations are up to `STORES_SECONDS` old.
    """

    at: int
    stages: list[StageFlow] = field(default_factory=list)
    stores: Mapping[str, int] = field(default_factory=dict)
    generations: list[GenerationFlow] = field(default_factory=list)
    error: str | None = None


class _Oldest(NamedTuple):
    """The first record at or after an offset: its timestamp in ms, None if none could be read up to `end`."""

    offset: int
    end: int
    timestamp: int | None


class Watch:
    """Looks at the flow again and again. Use as an async context manager, from one task."""

    def __init__(self, settings: Settings, stores: Stores, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._stores = stores
        self._clock = clock
        self._open: AsyncExitStack | None = None
        self._kafka: tuple[AIOKafkaAdminClient, AIOKafkaConsumer]
        self._commits: dict[StageName, deque[tuple[float, int]]] = {stage: deque() for stage in STAGES}
        self._oldest: dict[TopicPartition, _Oldest] = {}
        self._counts: dict[str, int] = {}
        self._generations: list[GenerationFlow] = []
        self._stores_asked = -math.inf

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    async def look(self) -> Look:
        """The flow now. A part that does not answer is left out and named: this raises no `StreamError`."""
        errors: list[str] = []
        stages = await self._part(errors, "Kafka", self._stages) or []
        if errors:
            await self._close()
        if self._clock() - self._stores_asked >= STORES_SECONDS:
            self._stores_asked = self._clock()
            counts = await asyncio.gather(*(self._part(errors, store.name, store.count) for store in self._stores.both))
            named = zip(self._stores.both, counts, strict=True)
            self._counts = {store.name: count for store, count in named if count is not None}
            self._generations = await self._part(errors, "a server", self._generations_now) or []
        return Look(int(time.time() * 1000), stages, self._counts, self._generations, "; ".join(errors) or None)

    async def _part(self, errors: list[str], name: str, ask: Callable[[], Awaitable[Answer]]) -> Answer | None:
        try:
            return await within(PATIENCE, name, ask)
        except StreamError as error:
            errors.append(str(error))
            return None

    async def _stages(self) -> list[StageFlow]:
        if self._open is None:
            self._open = AsyncExitStack()
            admin = await self._open.enter_async_context(clients.admin(self._settings))
            self._kafka = admin, await self._open.enter_async_context(clients.offsets(self._settings))
        found = await snapshot(self._settings, *self._kafka)
        ages = await self._ages(found)
        return [self._stage(status, found, ages[status.stage]) for status in found.stages]

    def _stage(self, status: StageStatus, found: Snapshot, age: float | None) -> StageFlow:
        rate = self._rate(status.stage, sum(found.done[status.stage].values()))
        topic = topics.source(self._settings, status.stage)
        return StageFlow(status.stage, topic, status.total, status.done, status.lag, rate, age, status.dead_letters)

    def _rate(self, stage: StageName, committed: int) -> float:
        """A group that was set back has no negative rate: its rate begins again."""
        commits, now = self._commits[stage], self._clock()
        if commits and committed < commits[-1][1]:
            commits.clear()
        commits.append((now, committed))
        while now - commits[0][0] > RATE_SECONDS:
            commits.popleft()
        seconds, before = now - commits[0][0], commits[0][1]
        return (committed - before) / seconds if seconds else 0.0

    async def _ages(self, found: Snapshot) -> dict[StageName, float | None]:
        first = {tp: offset for done in found.done.values() for tp, offset in done.items() if offset < found.ends[tp]}
        await self._read_oldest(
            {tp: offset for tp, offset in first.items() if not self._knows(tp, offset, found)}, found
        )
        now = time.time()
        ages: dict[StageName, float | None] = {}
        for stage, done in found.done.items():
            known = (self._oldest[tp].timestamp for tp in done if tp in first)
            times = [timestamp for timestamp in known if timestamp is not None]
            ages[stage] = max(now - min(times) / 1000, 0) if times else None
        return ages

    def _knows(self, tp: TopicPartition, offset: int, found: Snapshot) -> bool:
        known = self._oldest.get(tp)
        return bool(known and known.offset == offset and (known.timestamp is not None or known.end == found.ends[tp]))

    async def _read_oldest(self, wanted: Mapping[TopicPartition, int], found: Snapshot) -> None:
        """Reads one record of each partition. Where only markers of transactions follow, there is none to read."""
        if not wanted:
            return
        _, client = self._kafka
        self._oldest |= {tp: _Oldest(offset, found.ends[tp], None) for tp, offset in wanted.items()}
        client.assign(list(wanted))
        for tp, offset in wanted.items():
            client.seek(tp, offset)
        missing, deadline = set(wanted), self._clock() + READ_SECONDS
        while missing and (left := deadline - self._clock()) > 0:
            for tp, records in (await client.getmany(*missing, timeout_ms=int(1000 * left), max_records=1)).items():
                self._oldest[tp] = _Oldest(wanted[tp], found.ends[tp], records[0].timestamp)
                missing.discard(tp)
        client.unsubscribe()  # an assigned client reads on

    async def _generations_now(self) -> list[GenerationFlow]:
        generations = await self._stores.generations()
        swaps = {one.flow: reindex.unfinished(one.flow, generations) for one in generations}
        return [
            GenerationFlow(
                one.number,
                one.flow,
                sorted(one.live_in),
                swaps[one.flow] == one.number,
                await reindex.lag_now(self._settings, one, *self._kafka) if self._open else None,
            )
            for one in generations
        ]

    async def _close(self) -> None:
        opened, self._open = self._open, None
        self._oldest.clear()
        if opened:
            await opened.aclose()


async def within(seconds: float, name: str, ask: Callable[[], Awaitable[Answer]]) -> Answer:
    """What `ask` returns; raises `Outage` if a server does not answer in time, and for every error of Kafka."""
    try:
        async with asyncio.timeout(seconds):
            return await ask()
    except TimeoutError:
        raise Outage(f"{name} has not answered within {seconds:g} s") from None
    except KafkaError as error:
        raise Outage(f"Kafka does not answer: {type(error).__name__}") from None
