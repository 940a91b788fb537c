"""Records that are sent once more to their compacted topic, so that none of them takes the place of a newer record.

A copy has the key, value, headers, partition and timestamp of its record (the timestamp is the version of a chunk that
has none). Kafka keeps the last record of a key. Where a producer has published a newer record before the copy of an
older one arrived, the newer record is sent once more, behind the copy.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

from aiokafka import AIOKafkaProducer
from aiokafka.errors import MessageSizeTooLargeError
from aiokafka.structs import RecordMetadata

from stream.config import Settings
from stream.errors import ConfigurationError
from stream.kafka import reader
from stream.ratelimit import RateLimiter
from stream.records import Record

UNACKNOWLEDGED = 500  # copies on their way to Kafka at most
LOG_APPEND_TIME = 1  # a topic's `message.timestamp.type`: the broker's clock takes the place of a record's timestamp

Name = tuple[int, bytes]  # a partition and the digest of a key
Twin = tuple[bytes, int]  # the digest of key, value and headers, and the timestamp: equal for copies of one record


def name_of(record: Record) -> Name:
    """What a record shares with all records of its key in its partition."""
    return record.partition, _digest(record.key or b"")


def twin_of(record: Record) -> Twin:
    """What a record shares with its copies, whoever sent them."""
    headers = repr([(name, value) for name, value in record.headers])
    sizes = repr([None if part is None else len(part) for part in (record.key, record.value)])
    return _digest(record.key or b"", record.value or b"", headers.encode(), sizes.encode()), record.timestamp


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.digest()


class _Copy(NamedTuple):
    """Where the last copy of a key lies, and the offset of its record: what has a higher offset is newer."""

    at: int
    of: int


class Copies:
    """Sends records again, and remembers where their copies lie: some 300 bytes for each."""

    def __init__(
        self, settings: Settings, producer: AIOKafkaProducer, topic: str, *, rate: float | None = None
    ) -> None:
        self._settings = settings
        self._producer = producer
        self._topic = topic
        self._limiter = RateLimiter(rate)
        self._waiting: list[tuple[Record, asyncio.Future[RecordMetadata]]] = []
        self._last: dict[Name, _Copy] = {}
        self._twins: set[Twin] = set()
        self._unwatched: set[int] = set()  # partitions with copies behind which nobody has looked
        self.sent = 0

    async def send(self, record: Record) -> None:
        """Sends a copy; where it lies is known after `acknowledged`. A partition that is gone leaves Kafka the choice.

        Raises `ConfigurationError` for a record that is larger than what the producer lets through.
        """
        await self._limiter.acquire()
        if record.timestamp < 0:  # of a producer that has no clock
            record = replace(record, timestamp=int(time.time() * 1000))
        try:
            sending = await self._producer.send(
                self._topic,
                key=record.key,
                value=record.value,
                partition=record.partition if record.partition in await self._partitions() else None,
                timestamp_ms=record.timestamp,
                headers=list(record.headers),
            )
        except MessageSizeTooLargeError:
            raise ConfigurationError(
                f"the record at {record.partition}@{record.offset} has {record.size:,} bytes, which is more than "
                "STREAM_MAX_MESSAGE_BYTES: raise it, or leave the record out with --offsets"
            ) from None
        self._waiting.append((record, sending))
        self.sent += 1
        if len(self._waiting) >= UNACKNOWLEDGED:
            await self.acknowledged()

    async def acknowledged(self) -> None:
        """Waits until Kafka has all that was sent; raises what Kafka says of the first that it refuses."""
        waiting, self._waiting = self._waiting, []
        for record, sending in waiting:
            sent = await sending
            dated = replace(record, timestamp=sent.timestamp) if sent.timestamp_type == LOG_APPEND_TIME else record
            self.lies(dated, sent.partition, sent.offset)

    def lies(self, record: Record, partition: int, offset: int) -> None:
        """Remembers where a copy of a record lies, also one of an earlier run."""
        name = partition, name_of(record)[1]
        before = self._last.get(name, _Copy(-1, -1))
        of = record.offset if partition == record.partition else -1
        self._last[name] = _Copy(max(offset, before.at), max(of, before.of))
        self._twins.add(twin_of(record))
        self._unwatched.add(partition)

    async def restore(
        self, since: Mapping[int, int], wanted: Callable[[Record], bool] = lambda _: True
    ) -> list[Record]:
        """Sends the newer records once more behind which copies have come to lie; returns them, all acknowledged.

        `since` says by partition from which offset on there may be such records; the default is the oldest record kept.
        A newer record that is not `wanted` stays where it is.
        """
        await self.acknowledged()
        restored: list[Record] = []
        since = dict(since)
        while self._unwatched and (overtaken := [record for record in await self._overtaken(since) if wanted(record)]):
            for record in overtaken:
                await self.send(record)
            await self.acknowledged()
            restored += overtaken
        return restored

    async def _overtaken(self, since: dict[int, int]) -> list[Record]:
        """The newest records of others that lie before a copy of an older one; moves `since` on."""
        newest: dict[Name, Record] = {}
        partitions, self._unwatched = self._unwatched, set()
        async for record in reader.read_to_end(self._settings, self._topic, since, only=partitions):
            since[record.partition] = record.offset + 1
            name = name_of(record)
            last = self._last.get(name)
            if last is None or record.offset <= last.of:
                continue
            if twin_of(record) in self._twins:  # ours, or of somebody who copies the same records at the same time
                self._last[name] = last._replace(at=max(last.at, record.offset))
            else:
                newest[name] = record
        return [record for name, record in newest.items() if record.offset < self._last[name].at]

    async def _partitions(self) -> set[int]:
        found: set[int] = await self._producer.partitions_for(self._topic)
        return found
