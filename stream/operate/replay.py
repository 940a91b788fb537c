"""Replay: a stage and all later stages process records of the stage's topic again.

Either a copy of each record is published at the end of the topic, or the stage's consumer group is set back.

A record is not copied if its key has a newer record: the topic is compacted, and Kafka would keep the copy instead of
the newer record. `copies` handles records that a producer publishes meanwhile.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson
from aiokafka import TopicPartition

from stream.config import Settings, StageName
from stream.kafka import clients, reader, topics
from stream.operate.copies import Copies, KeyId, key_id_of
from stream.records import Decoder, Record

Progress = Callable[[int, int], None]  # done, total
Moment = Literal["earliest", "latest"] | int  # an integer is ms since the epoch


def _silent(*_: int) -> None:
    pass


@dataclass(frozen=True)
class Range:
    """Which records are wanted; every condition must hold.

    `since` and `until` are timestamps in ms, the second exclusive; `offsets` are ranges in partitions; `fields` are
    values in the record's JSON (in the first topic: in the chunk that it means) by dotted path, such as
    `metadata.lang`, compared as text.
    """

    since: int | None = None
    until: int | None = None
    offsets: Sequence[tuple[int, range]] = ()
    keys: frozenset[bytes] = frozenset()
    fields: Mapping[str, str] = field(default_factory=dict)

    def takes(self, record: Record, decoder: Decoder) -> bool:
        """Whether a record is wanted. A record that is not a JSON object, such as a tombstone, has no fields."""
        return (
            (self.since is None or record.timestamp >= self.since)
            and (self.until is None or record.timestamp < self.until)
            and (not self.offsets or any(record.partition == p and record.offset in r for p, r in self.offsets))
            and (not self.keys or record.key in self.keys)
            and (not self.fields or self._has_fields(record, decoder))
        )

    def _has_fields(self, record: Record, decoder: Decoder) -> bool:
        try:
            content = None if record.value is None else decoder.content(record.value, record.headers)
        except ValueError:
            return False
        return all(_text(_at(content, path)) == wanted for path, wanted in self.fields.items())


@dataclass
class Plan:
    """`places` are the records to copy, by partition and offset; `older` counts wanted records with a newer one."""

    places: set[tuple[int, int]] = field(default_factory=set)
    older: int = 0
    ends: dict[int, int] = field(default_factory=dict)


async def plan(settings: Settings, stage: StageName, wanted: Range, progress: Progress = _silent) -> Plan:
    """Finds the newest record of each key in the stage's topic, if it is wanted; changes nothing.

    Memory grows with the number of records to copy, about 200 bytes for each.
    """
    decoder = Decoder.of("chunk" if stage == "embed" else "expanded", settings)
    chosen: dict[KeyId, int] = {}
    found = Plan()
    async for record in reader.read_to_end(settings, topics.source(settings, stage), progress=progress):
        found.ends[record.partition] = record.offset + 1
        key = key_id_of(record)
        takes = record.key is not None and wanted.takes(record, decoder)
        if key in chosen:
            found.older += 1
            del chosen[key]
        if takes:
            chosen[key] = record.offset
    found.places = {(partition, offset) for (partition, _), offset in chosen.items()}
    return found


async def publish_again(
    settings: Settings, stage: StageName, planned: Plan, *, rate: float | None = None, progress: Progress = _silent
) -> int:
    """Publishes a copy of each planned record, at most `rate` a second; returns their number, all acknowledged.

    After an interruption, plan and run it again: a second copy changes nothing. Raises `ConfigurationError` for a
    record that is larger than `max_message_bytes`.
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
    """Sets a stage's consumer group to the beginning, the end or a time; returns the offsets by partition.

    The end is the offset of the oldest open transaction, if there is one: its records are read after its commit.

    Raises `CommitFailedError` if the group has members: they would overwrite these offsets with their own.
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
