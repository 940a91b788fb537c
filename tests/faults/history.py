"""Publishes records while faults happen, and checks the topics and stores at the end."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import NamedTuple

import orjson
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from support import CONTRACTS, chunk, names, transactional

from stream.config import STAGES, Settings
from stream.kafka import clients, reader, topics
from stream.records import VERSION_HEADER, Decoder, Headers, Rejected, Tombstone, sha256
from stream.stores import Stores

NEW = 0.25  # the share of records that make a new chunk; the others have a newer version than before
TOMBSTONES = 0.1
PUBLISHED_A_SECOND = 30
TRANSACTIONS_A_SECOND = 2
SLOWER = 6  # times fewer of both, when they are published slowly
ABORTED = 0.4  # the share of transactions
OPEN = 0.1  # seconds that a transaction stays open and blocks later records
KAFKA_AWAY = 30.0  # seconds that a transaction may take
LEFT_OPEN = 10_000  # milliseconds after which Kafka aborts a transaction that publishing has left open
PAGE = 500  # chunks asked of a store at once
WORDS = ["lock", "queue", "socket", "stream", "thread", "await", "commit", "offset", "vector", "shard", "broker", "lag"]


class Change(NamedTuple):
    """A record to be published; no value means a tombstone."""

    chunk_id: str
    version: int
    value: bytes | None
    headers: Headers


class Last(NamedTuple):
    """A chunk's last record in a topic; no text means a tombstone."""

    version: int
    text_sha256: str | None


@dataclass
class Seen:
    """The state of reading a topic: the next offset of each partition, and the last record of each chunk."""

    since: dict[int, int] = field(default_factory=dict)
    last: dict[str, Last] = field(default_factory=dict)


def same(one: Last | None, other: Last | None) -> bool:
    """Whether both are equal, or one is a tombstone that compaction has removed from the other topic."""
    return one == other or (
        None in (one, other) and all(last is None or last.text_sha256 is None for last in (one, other))
    )


class History:
    """Publishes new chunks, newer versions of chunks and tombstones, drawn from a seed; some of them in transactions.

    Each record has its own version. A chunk is published either always or never in committed transactions, so that its
    versions grow with its offsets. An aborted transaction may have records of any chunk.

    `acknowledged`: the newest version of each chunk that Kafka has acknowledged; a send or a commit that failed may
    have happened or not. `aborted`: the versions that must never take effect.
    """

    def __init__(self, settings: Settings, seed: int) -> None:
        self.sent = 0
        self.acknowledged: dict[str, int] = {}
        self.aborted: set[int] = set()
        self._deleted: dict[str, int] = {}  # the newest tombstone of each chunk, acknowledged or not
        self._settings = settings
        self._random = random.Random(seed)
        self._version = 0
        self._slower = 1
        self._chunks: Counter[str] = Counter()  # by the first letter of chunk_id
        self._on_their_way: set[asyncio.Task[None]] = set()
        self._plain, self._transactional = asyncio.Lock(), asyncio.Lock()  # each held during one step
        self._seen: dict[str, Seen] = {}
        self._effective: set[str] = set()  # sentences about aborted records
        self._unchecked: set[str] = set()  # chunks with new records since the stores were last found correct

    @asynccontextmanager
    async def publishing(self) -> AsyncIterator[None]:
        """Publishes in the background; at the end every transaction is over."""
        async with clients.producer(self._settings) as producer:
            going = [asyncio.create_task(self._publish(producer)), asyncio.create_task(self._publish_in_transactions())]
            try:
                yield
            finally:
                with suppress(TimeoutError):
                    async with asyncio.timeout(2 * KAFKA_AWAY), self.paused():
                        pass
                for task in going:
                    task.cancel()
                await asyncio.wait([*going, *self._on_their_way], timeout=60)
                for task in going:
                    with suppress(asyncio.CancelledError):
                        await task

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Pauses publishing; earlier records are acknowledged and no transaction is open."""
        async with self._plain, self._transactional:
            await asyncio.gather(*self._on_their_way)
            yield

    @contextmanager
    def slowly(self) -> Iterator[None]:
        """Publishes slowly enough for a stage to catch up, also on a busy machine."""
        self._slower = SLOWER
        try:
            yield
        finally:
            self._slower = 1

    async def transaction(
        self, producer: AIOKafkaProducer, *, commit: bool, records: int, seconds: float = OPEN, own: str = "t"
    ) -> None:
        """One transaction, open for some seconds at least. `own` is the first letter of chunks that it may commit."""
        changes = [self._draw(own if commit else self._random.choice("ct")) for _ in range(records)]
        versions = {change.version for change in changes}
        self.aborted |= versions
        await producer.begin_transaction()
        await asyncio.gather(*[await self._send(producer, change) for change in changes])
        await asyncio.sleep(seconds)
        if not commit:
            await producer.abort_transaction()
            return
        self.aborted -= versions  # Kafka may have committed, even if the commit fails
        self._note_deletions(changes)
        await producer.commit_transaction()
        for change in changes:
            self._acknowledge(change)

    async def _publish(self, producer: AIOKafkaProducer) -> None:
        while True:
            async with self._plain:
                change = self._draw("c")
                self._note_deletions([change])
                noting = asyncio.create_task(self._note(change, await self._send(producer, change)))
                self._on_their_way.add(noting)
                noting.add_done_callback(self._on_their_way.discard)
            await asyncio.sleep(self._slower / PUBLISHED_A_SECOND)

    async def _publish_in_transactions(self) -> None:
        while True:
            with suppress(KafkaError, TimeoutError):  # the next producer aborts the open transaction
                async with transactional(
                    self._settings, self._settings.topic, transaction_timeout_ms=LEFT_OPEN
                ) as producer:
                    while True:
                        async with self._transactional, asyncio.timeout(KAFKA_AWAY):
                            commit, records = self._random.random() > ABORTED, self._random.randrange(1, 12)
                            await self.transaction(producer, commit=commit, records=records)
                        await asyncio.sleep(self._slower / TRANSACTIONS_A_SECOND)
            await asyncio.sleep(1)

    def _draw(self, letter: str) -> Change:
        self._version += 1
        known = self._chunks[letter]
        if not known or self._random.random() < NEW:
            self._chunks[letter] = n = known + 1
        else:
            n = self._random.randint(1, known)
        if self._random.random() < TOMBSTONES:
            return Change(f"{letter}{n}", self._version, None, [(VERSION_HEADER, str(self._version).encode())])
        text = " ".join(self._random.choices(WORDS, k=self._random.randrange(1, 40)))
        value = orjson.dumps(chunk(f"{letter}{n}", text, self._version))
        return Change(f"{letter}{n}", self._version, value, [])

    async def _send(self, producer: AIOKafkaProducer, change: Change) -> asyncio.Future[object]:
        self.sent += 1
        return await producer.send(
            self._settings.topic, key=change.chunk_id.encode(), value=change.value, headers=change.headers
        )

    async def _note(self, change: Change, acknowledgement: asyncio.Future[object]) -> None:
        with suppress(KafkaError):
            await acknowledgement
            self._acknowledge(change)

    def _acknowledge(self, change: Change) -> None:
        self.acknowledged[change.chunk_id] = max(change.version, self.acknowledged.get(change.chunk_id, 0))

    def _note_deletions(self, changes: list[Change]) -> None:
        self._deleted |= {change.chunk_id: change.version for change in changes if change.value is None}

    async def differences(self, *, everything: bool = False) -> list[str]:
        """What is wrong in the topics, one sentence each.

        Wrong are: an acknowledged version that is missing without a newer one; a chunk whose last records in the first
        and in a later topic differ; an aborted record. Compaction may have removed a tombstone and everything before.

        Reads the records since the last call. Reads from the beginning with `everything`, and before it reports an
        error: a tombstone may have been written and removed between two calls.
        """
        if not everything:
            await self._read_on()
            if not self._wrong():
                return []
        self._seen.clear()
        await self._read_on()
        return self._wrong()

    async def _read_on(self) -> None:
        for stage in STAGES:
            topic = topics.source(self._settings, stage)
            seen = self._seen.setdefault(topic, Seen())
            async for record in reader.read_to_end(self._settings, topic, seen.since):
                seen.since[record.partition] = record.offset + 1
                decoded = Decoder.of(CONTRACTS[stage], self._settings)(record)
                assert not isinstance(decoded, Rejected)
                chunk_id, version = names(decoded)
                text = None if isinstance(decoded, Tombstone) else sha256(decoded["text"])
                seen.last[chunk_id] = Last(version, text)
                self._unchecked.add(chunk_id)
                if version in self.aborted:
                    self._effective.add(f"{chunk_id}: version {version} was aborted, {topic} shows it")

    def _wrong(self) -> list[str]:
        first, *later = (self._seen[topics.source(self._settings, stage)].last for stage in STAGES)
        found = sorted(self._effective)
        for chunk_id, version in self.acknowledged.items():
            last = first.get(chunk_id)
            if last is None and self._deleted.get(chunk_id, 0) >= version:
                continue  # compaction has removed the tombstone
            if last is None or last.version < version:
                found.append(f"{chunk_id}: version {version} was acknowledged, the first topic has {last}")
        for stage, lasts in zip(STAGES[1:], later, strict=True):
            for chunk_id in first.keys() | lasts.keys():
                wanted, last = first.get(chunk_id), lasts.get(chunk_id)
                if not same(wanted, last):
                    found.append(f"{chunk_id}: the last record before {stage} is {last}, in the first topic {wanted}")
        return found

    async def unlike(self, stores: Stores) -> list[str]:
        """Differences of the stores from the topic, for chunks read since both agreed, and for the number of chunks."""
        chunks = self._seen[self._settings.topic].last
        unchecked = sorted(self._unchecked)
        found = []
        for store in stores.both:
            for start in range(0, len(unchecked), PAGE):
                page = unchecked[start : start + PAGE]
                held = await store.stored(page)
                for chunk_id in page:
                    wanted, stored = chunks.get(chunk_id), held.get(chunk_id)
                    has = Last(stored.version, stored.text_sha256) if stored else None
                    whole = stored is None or stored.complete or stored.text_sha256 is None
                    if not whole or not same(wanted, has):
                        found.append(f"{chunk_id}: {store.name} has {stored}, the topic {wanted}")
            count, live = await store.count(), sum(last.text_sha256 is not None for last in chunks.values())
            if count != live:
                found.append(f"{store.name} has {count} chunks, the topic {live}")
        if not found:
            self._unchecked.clear()
        return found
