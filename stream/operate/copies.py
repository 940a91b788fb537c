"""Sends records again to their compacted topic, so that no copy replaces a newer record.

A copy has the key, value, headers, partition and timestamp of its record (the timestamp is the version of a chunk that
has no version). Kafka keeps the last record of a key. If a producer has published a newer record before the copy of an
older one arrived, the newer record is sent again, after the copy.
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

UNACKNOWLEDGED = 500  # at most so many copies wait for Kafka's acknowledgement
LOG_APPEND_TIME = 1  # a topic's `message.timestamp.type`: the broker replaces a record's timestamp with its own time

KeyId = tuple[int, bytes]  # a partition and the digest of a key
Fingerprint = tuple[bytes, int]  # a digest of key, value and headers, and the timestamp


def key_id_of(record: Record) -> KeyId:
    """Identifies a record's key in its partition."""
    return record.partition, _digest(record.key or b"")


def fingerprint_of(record: Record) -> Fingerprint:
    """Is equal for a record and its copies, no matter which process sent them."""
    headers = repr([(name, value) for name, value in record.headers])
    sizes = repr([None if part is None else len(part) for part in (record.key, record.value)])
    return _digest(record.key or b"", record.value or b"", headers.encode(), sizes.encode()), record.timestamp


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.digest()


class _Copy(NamedTuple):
    """`at` is the offset of a key's last copy, `of` that of the copied record; newer records have higher offsets."""

    at: int
    of: int


class Copies:
    """Sends records again, and keeps the offsets of their copies: about 300 bytes for each."""

    def __init__(
        self, settings: Settings, producer: AIOKafkaProducer, topic: str, *, rate: float | None = None
    ) -> None:
        self._settings = settings
        self._producer = producer
        self._topic = topic
        self._limiter = RateLimiter(rate)
        self._waiting: list[tuple[Record, asyncio.Future[RecordMetadata]]] = []
        self._last: dict[KeyId, _Copy] = {}
        self._fingerprints: set[Fingerprint] = set()
        self._unchecked: set[int] = set()  # partitions with copies that were not yet compared with newer records
        self.sent = 0

    async def send(self, record: Record) -> None:
        """Sends a copy; its offset is known after `acknowledged`. If its partition is gone, Kafka chooses one.

        Raises `ConfigurationError` for a record that is larger than the producer's limit.
        """
        await self._limiter.acquire()
        if record.timestamp < 0:  # its producer has set none
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
                f"the record at {record.partition}@{record.offset} has {record.size:,} bytes, which is larger than "
                "STREAM_MAX_MESSAGE_BYTES: raise it, or leave the record out with --offsets"
            ) from None
        self._waiting.append((record, sending))
        self.sent += 1
        if len(self._waiting) >= UNACKNOWLEDGED:
            await self.acknowledged()

    async def acknowledged(self) -> None:
        """Waits until Kafka has acknowledged all copies; raises Kafka's error for the first copy that it rejects."""
        waiting, self._waiting = self._waiting, []
        for record, sending in waiting:
            sent = await sending
            dated = replace(record, timestamp=sent.timestamp) if sent.timestamp_type == LOG_APPEND_TIME else record
            self.note(dated, sent.partition, sent.offset)

    def note(self, record: Record, partition: int, offset: int) -> None:
        """Keeps the partition and offset of a copy of a record, also of a copy from an earlier run."""
        key = partition, key_id_of(record)[1]
        before = self._last.get(key, _Copy(-1, -1))
        of = record.offset if partition == record.partition else -1
        self._last[key] = _Copy(max(offset, before.at), max(of, before.of))
        self._fingerprints.add(fingerprint_of(record))
        self._unchecked.add(partition)

    async def restore(
        self, since: Mapping[int, int], wanted: Callable[[Record], bool] = lambda _: True
    ) -> list[Record]:
        """Sends newer records again that lie before a copy of an older record; returns them, all acknowledged.

        `since` is the offset to search from, by partition; the default is the oldest record kept. A newer record that
        is not `wanted` is not sent again.
        """
        await self.acknowledged()
        restored: list[Record] = []
        since = dict(since)
        while self._unchecked and (overtaken := [record for record in await self._overtaken(since) if wanted(record)]):
            for record in overtaken:
                await self.send(record)
            await self.acknowledged()
            restored += overtaken
        return restored

    async def _overtaken(self, since: dict[int, int]) -> list[Record]:
        """The newest records of each key that lie before a copy of an older record; advances `since`."""
        newest: dict[KeyId, Record] = {}
        partitions, self._unchecked = self._unchecked, set()
        async for record in reader.read_to_end(self._settings, self._topic, since, only=partitions):
            since[record.partition] = record.offset + 1
            key = key_id_of(record)
            last = self._last.get(key)
            if last is None or record.offset <= last.of:
                continue
            if fingerprint_of(record) in self._fingerprints:  # a copy, of this process or of a concurrent one
                self._last[key] = last._replace(at=max(last.at, record.offset))
            else:
                newest[key] = record
        return [record for key, record in newest.items() if record.offset < self._last[key].at]

    async def _partitions(self) -> set[int]:
        found: set[int] = await self._producer.partitions_for(self._topic)
        return found
