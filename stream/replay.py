"""Replaying: records of a stage's topic go through the stage, and through all behind it, once more.

Either a copy of each is published at the end of the topic, or the stage's consumer group is set back.

A copy has the original key, value, headers, partition and timestamp (which is the version of a chunk that has none).
A record whose key has a newer one stays where it is: the topic is compacted, and Kafka would keep the copy in place of
the newer record. What a producer publishes meanwhile may be overtaken by a copy; it is published once more.
"""

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import MessageSizeTooLargeError
from aiokafka.structs import RecordMetadata

from stream import kafka, topics
from stream.config import Settings, StageName
from stream.errors import ConfigurationError
from stream.pace import Pace
from stream.records import Record

UNACKNOWLEDGED = 500  # copies on their way to Kafka at most

Progress = Callable[[int, int], None]  # how many, of how many
Name = tuple[int, bytes]  # a partition and the digest of a key
Moment = Literal["earliest", "latest"] | int  # an integer is ms since the epoch


def _silent(*_: int) -> None:
    pass


@dataclass(frozen=True)
class Range:
    """Which records are wanted; every condition must hold.

    `since` and `until` are timestamps in ms, the second exclusive; `offsets` are ranges in partitions; `fields` are
    values in the record's JSON by dotted path, such as `metadata.lang`, compared as text.
    """

    since: int | None = None
    until: int | None = None
    offsets: Sequence[tuple[int, range]] = ()
    keys: frozenset[bytes] = frozenset()
    fields: Mapping[str, str] = field(default_factory=dict)

    def takes(self, record: Record) -> bool:
        """Whether a record is wanted. One that is no JSON object, such as a tombstone, has no fields."""
        return (
            (self.since is None or record.timestamp >= self.since)
            and (self.until is None or record.timestamp < self.until)
            and (not self.offsets or any(record.partition == p and record.offset in r for p, r in self.offsets))
            and (not self.keys or record.key in self.keys)
            and (not self.fields or self._has_fields(record.value))
        )

    def _has_fields(self, value: bytes | None) -> bool:
        try:
            content = orjson.loads(value or b"null")
        except orjson.JSONDecodeError:
            return False
        return all(_text(_at(content, path)) == wanted for path, wanted in self.fields.items())


@dataclass
class Plan:
    """Which records are to go, by partition and offset; how many stay because their key has a newer one."""

    places: set[tuple[int, int]] = field(default_factory=set)
    older: int = 0
    ends: dict[int, int] = field(default_factory=dict)


async def plan(settings: Settings, stage: StageName, wanted: Range, progress: Progress = _silent) -> Plan:
    """Looks through the stage's topic for the newest record of each key that is wanted; changes nothing.

    Memory grows with the number of records that are to go, some 200 bytes for each.
    """
    chosen: dict[Name, int] = {}
    found = Plan()
    async for record in kafka.read_to_end(settings, topics.source(settings, stage), progress=progress):
        found.ends[record.partition] = record.offset + 1
        name = _name(record)
        takes = record.key is not None and wanted.takes(record)
        if name in chosen:
            found.older += 1
            del chosen[name]
        if takes:
            chosen[name] = record.offset
    found.places = {(partition, offset) for (partition, _), offset in chosen.items()}
    return found


async def publish_again(
    settings: Settings, stage: StageName, planned: Plan, *, rate: float | None = None, progress: Progress = _silent
) -> int:
    """Publishes a copy of each record, at most `rate` a second; returns how many, all acknowledged.

    After an interruption it may be planned and run again: what went twice changes nothing. Raises `ConfigurationError`
    for a record that is larger than what the settings let through.
    """
    source = topics.source(settings, stage)
    await topics.check(settings, [source])
    async with kafka.producer(settings) as producer:
        copies = _Copies(producer, source, rate)
        async for record in kafka.read_to_end(settings, source):
            if (record.partition, record.offset) in planned.places:
                await copies.send(record)
                progress(copies.sent, len(planned.places))
        await copies.acknowledged()
        done, since = copies.sent, planned.ends
        while overtaken := await copies.overtaken(settings, since):
            for record in overtaken:
                await copies.send(record)
            await copies.acknowledged()
    return done


class _Copies:
    """Sends records again, and remembers where their copies lie."""

    def __init__(self, producer: AIOKafkaProducer, topic: str, rate: float | None) -> None:
        self._producer = producer
        self._topic = topic
        self._pace = Pace(rate)
        self._waiting: list[tuple[Name, asyncio.Future[RecordMetadata]]] = []
        self._at: dict[Name, int] = {}
        self.sent = 0

    async def send(self, record: Record) -> None:
        await self._pace.turn()
        try:
            sending = await self._producer.send(
                self._topic,
                key=record.key,
                value=record.value,
                partition=record.partition,
                timestamp_ms=record.timestamp if record.timestamp >= 0 else None,
                headers=list(record.headers),
            )
        except MessageSizeTooLargeError:
            raise ConfigurationError(
                f"the record at {record.partition}@{record.offset} has {record.size:,} bytes, which is more than "
                "STREAM_MAX_MESSAGE_BYTES: raise it, or leave the record out with --offsets"
            ) from None
        self._waiting.append((_name(record), sending))
        self.sent += 1
        if len(self._waiting) >= UNACKNOWLEDGED:
            await self.acknowledged()

    async def acknowledged(self) -> None:
        """Waits until Kafka has all that was sent."""
        for name, sending in self._waiting:
            self._at[name] = (await sending).offset
        self._waiting.clear()

    async def overtaken(self, settings: Settings, since: dict[int, int]) -> list[Record]:
        """Somebody else's newest records behind which a copy of an older one has come to lie; moves `since` on."""
        newest: dict[Name, Record] = {}
        async for record in kafka.read_to_end(settings, self._topic, since, only=list(since)):
            since[record.partition] = record.offset + 1
            name = _name(record)
            if name in self._at and record.offset != self._at[name]:
                newest[name] = record
        return [record for name, record in newest.items() if record.offset < self._at[name]]


async def reset(settings: Settings, stage: StageName, to: Moment) -> dict[int, int]:
    """Sets a stage's consumer group to the beginning, the end or a moment; returns the offsets by partition.

    The end lies before the oldest open transaction: what is committed later is read.

    Raises `CommitFailedError` if the group has members: they would commit their own offsets over it.
    """
    async with kafka.admin(settings) as admin:
        partitions = await kafka.partitions(admin, [topics.source(settings, stage)])
    async with kafka.consumer(settings) as client:
        offsets = await _offsets(client, partitions, to)
    await kafka.commit(settings, topics.group(settings, stage), offsets)
    return {tp.partition: offset for tp, offset in offsets.items()}


async def _offsets(client: Any, partitions: Iterable[TopicPartition], to: Moment) -> dict[TopicPartition, int]:
    if to == "earliest":
        return dict(await client.beginning_offsets(partitions))
    ends: dict[TopicPartition, int] = await client.end_offsets(partitions)
    if to == "latest":
        return ends
    found = await client.offsets_for_times(dict.fromkeys(partitions, to))
    return {tp: at.offset if at else ends[tp] for tp, at in found.items()}


def _name(record: Record) -> Name:
    return record.partition, hashlib.blake2b(record.key or b"", digest_size=16).digest()


def _at(content: Any, path: str) -> Any:
    for part in path.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content


def _text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()
