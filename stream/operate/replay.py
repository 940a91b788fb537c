"""Replaying: records of a stage's topic go through the stage, and through all behind it, once more.

Either a copy of each is published at the end of the topic, or the stage's consumer group is set back.

A record whose key has a newer one stays where it is: the topic is compacted, and Kafka would keep the copy in place of
the newer record. What a producer publishes meanwhile is guarded by `copies`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson
from aiokafka import TopicPartition

from stream.config import Settings, StageName
from stream.kafka import clients, reader, topics
from stream.operate.copies import Copies, Name, name_of
from stream.records import Record

Progress = Callable[[int, int], None]  # how many, of how many
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
    async for record in reader.read_to_end(settings, topics.source(settings, stage), progress=progress):
        found.ends[record.partition] = record.offset + 1
        name = name_of(record)
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
    async with clients.producer(settings) as producer:
        copies = Copies(settings, producer, source, rate=rate)
        async for record in reader.read_to_end(settings, source):
            if (record.partition, record.offset) in planned.places:
                await copies.send(record)
                progress(copies.sent, len(planned.places))
        done = copies.sent
        await copies.restore(planned.ends)
    return done


async def reset(settings: Settings, stage: StageName, to: Moment) -> dict[int, int]:
    """Sets a stage's consumer group to the beginning, the end or a moment; returns the offsets by partition.

    The end lies before the oldest open transaction: what is committed later is read.

    Raises `CommitFailedError` if the group has members: they would commit their own offsets over it.
    """
    async with clients.admin(settings) as admin:
        partitions = await clients.partitions(admin, [topics.source(settings, stage)])
    async with clients.consumer(settings) as client:
        offsets = await _offsets(client, partitions, to)
    await clients.commit(settings, topics.group(settings, stage), offsets)
    return {tp.partition: offset for tp, offset in offsets.items()}


async def _offsets(client: Any, partitions: Iterable[TopicPartition], to: Moment) -> dict[TopicPartition, int]:
    if to == "earliest":
        return dict(await client.beginning_offsets(partitions))
    ends: dict[TopicPartition, int] = await client.end_offsets(partitions)
    if to == "latest":
        return ends
    found = await client.offsets_for_times(dict.fromkeys(partitions, to))
    return {tp: at.offset if at else ends[tp] for tp, at in found.items()}


def _at(content: Any, path: str) -> Any:
    for part in path.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content


def _text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()
