"""Dead letters: the original key and value unchanged; headers say why, where, when and how often it was rejected.

`schemas/dead-letter.json` is the contract of the headers. A redriven letter stays in its topic. A marker with the
letter's place follows it in the same partition (`schemas/redriven.json`), so Kafka never deletes the marker first.
"""

import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

from stream.config import STAGES, Settings, StageName
from stream.kafka.clients import admin, offsets, partitions
from stream.kafka.reader import read_to_end
from stream.kafka.topics import dead_letters, source
from stream.records import Headers, Position, Reason, Record, Rejected, header, number

log = logging.getLogger(__name__)

PREFIX = "dlq."
DETAIL_LENGTH = 1000
LEFT_OUT_HEADER = "dlq.left-out"  # size in bytes of a value that the letter lacks because Kafka rejected it
ATTEMPTS_HEADER = "dlq.attempts"
AT_HEADER = "dlq.at"
REDRIVEN_HEADER = "dlq.redriven"


class Place(NamedTuple):
    """A record's partition and offset in its topic, written `PARTITION@OFFSET`."""

    partition: int
    offset: int

    @classmethod
    def of(cls, text: str) -> Self:
        """Parses `PARTITION@OFFSET`; raises `ValueError` for any other text."""
        partition, at, offset = text.partition("@")
        if not (at and partition.isdecimal() and offset.isdecimal()):
            raise ValueError(f"{text!r} is not PARTITION@OFFSET")
        return cls(int(partition), int(offset))

    def __str__(self) -> str:
        return f"{self.partition}@{self.offset}"


def without_letter(headers: Headers) -> list[tuple[str, bytes | None]]:
    """The headers that the record had before it became a dead letter."""
    return [(name, value) for name, value in headers if not name.startswith(PREFIX)]


def letter_headers(record: Record, stage: StageName, rejected: Rejected) -> list[tuple[str, bytes | None]]:
    """The headers of a record's dead letter: the record's own headers, and those of the contract."""
    attempts = (number(header(record.headers, ATTEMPTS_HEADER)) or 0) + 1
    why = {
        "stage": stage,
        "reason": rejected.reason,
        "detail": rejected.detail[:DETAIL_LENGTH],
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp": record.timestamp,
        "at": int(time.time() * 1000),
        "attempts": attempts,
    }
    return without_letter(record.headers) + [(PREFIX + name, str(value).encode()) for name, value in why.items()]


def redriven_headers(letter: "DeadLetter") -> list[tuple[str, bytes | None]]:
    """The headers of the marker that says that a letter was redriven now."""
    return [(REDRIVEN_HEADER, str(letter.place).encode()), (AT_HEADER, str(int(time.time() * 1000)).encode())]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead letter as read from its topic: `record` is the letter itself, the other fields come from its headers.

    `size` is the bytes of key and value. `redriven` is the time of the redrive, ms since the epoch, None without one.
    """

    record: Record
    stage: str
    reason: str
    detail: str
    topic: str
    partition: int
    offset: int
    timestamp: int
    at: int
    attempts: int
    size: int
    redriven: int | None = None

    @property
    def place(self) -> Place:
        """The letter's partition and offset in the dead-letter topic."""
        return Place(self.record.partition, self.record.offset)

    @property
    def left_out(self) -> bool:
        """Whether the letter lacks the original value because Kafka rejected it in the letter."""
        return header(self.record.headers, LEFT_OUT_HEADER) is not None

    @property
    def without_value(self) -> "DeadLetter":
        """The same letter without its value, which saves memory."""
        return replace(self, record=replace(self.record, value=None))

    @classmethod
    def of(cls, record: Record) -> "DeadLetter":
        """Parses the headers; raises `ValueError` if the record is not a dead letter."""

        def text(name: str) -> str:
            value = header(record.headers, PREFIX + name)
            if value is None:
                raise ValueError(f"{record.topic}/{record.partition}@{record.offset} lacks the header {PREFIX}{name}")
            return value.decode()

        return cls(
            record,
            text("stage"),
            text("reason"),
            text("detail"),
            text("topic"),
            int(text("partition")),
            int(text("offset")),
            int(text("timestamp")),
            int(text("at")),
            int(text("attempts")),
            record.size,
        )


@dataclass(frozen=True, slots=True)
class Filter:
    """Which letters are wanted: by stage, reason, exact key, and time of rejection: `since` ≤ time < `until`, in ms."""

    stages: tuple[StageName, ...] = STAGES
    reason: Reason | None = None
    key: bytes | None = None
    since: int | None = None
    until: int | None = None

    def takes(self, letter: DeadLetter) -> bool:
        """Whether a letter is wanted; its stage is not checked."""
        return (
            self.reason in (None, letter.reason)
            and self.key in (None, letter.record.key)
            and (self.since is None or letter.at >= self.since)
            and (self.until is None or letter.at < self.until)
        )


async def read(settings: Settings, stage: StageName) -> AsyncIterator[DeadLetter]:
    """A stage's dead letters, oldest first; a record that is not a dead letter is skipped with a warning.

    Reads the topic twice, first for the markers and then for the letters: memory grows only with the markers.
    """
    topic = dead_letters(settings, stage)
    redriven = {}
    async for record in read_to_end(settings, topic):
        if place := redriven_place(record):
            redriven[place] = _redriven_at(record)
    async for record in read_to_end(settings, topic):
        if letter := letter_of(record):
            yield replace(letter, redriven=redriven.get(letter.place))


async def newest(settings: Settings, stage: StageName, most: int) -> list[DeadLetter]:
    """The letters among the last `most` offsets of each partition, the newest first, with the time of their redrive."""
    letters: dict[Place, DeadLetter] = {}
    async for record in _last(settings, stage, most):
        if place := redriven_place(record):
            if place in letters:
                letters[place] = replace(letters[place], redriven=_redriven_at(record))
        elif letter := letter_of(record):
            letters[letter.place] = letter
    return sorted(letters.values(), key=lambda letter: letter.at, reverse=True)


async def rejected(settings: Settings, stage: StageName, most: int) -> list[Position]:
    """The records of the newest letters, at least `most` for each partition of the stage's topic; no redriven copies.

    The topic of letters may have fewer partitions than the stage's topic: `topics create` gives it one.
    """
    topic = source(settings, stage)
    async with admin(settings) as cluster:
        count = len(await partitions(cluster, [topic]))
    positions = []
    async for record in _last(settings, stage, most * count):
        letter = letter_of(record)
        if letter and letter.topic == topic and letter.attempts == 1:
            positions.append(Position(letter.topic, letter.partition, letter.offset))
    return positions


async def _last(settings: Settings, stage: StageName, most: int) -> AsyncIterator[Record]:
    """The records of a dead-letter topic at the last `most` offsets of each partition."""
    topic = dead_letters(settings, stage)
    async with admin(settings) as cluster, offsets(settings) as client:
        ends = await client.end_offsets(await partitions(cluster, [topic]))
    async for record in read_to_end(settings, topic, {tp.partition: end - most for tp, end in ends.items()}):
        yield record


async def waiting(settings: Settings, stage: StageName) -> int:
    """How many of a stage's dead letters were not redriven."""
    places: set[Place] = set()
    async for record in read_to_end(settings, dead_letters(settings, stage)):
        if place := redriven_place(record):
            places.discard(place)
        elif letter := letter_of(record):
            places.add(letter.place)
    return len(places)


def redriven_place(record: Record) -> Place | None:
    """The place of the letter that a marker marks as redriven; None if the record is not a marker."""
    try:
        return Place.of((header(record.headers, REDRIVEN_HEADER) or b"").decode())
    except ValueError:
        return None


def _redriven_at(marker: Record) -> int:
    return number(header(marker.headers, AT_HEADER)) or marker.timestamp


def letter_of(record: Record) -> DeadLetter | None:
    """A record of the topic as a letter; None for a marker; None, with a warning, for any other record."""
    if redriven_place(record):
        return None
    try:
        return DeadLetter.of(record)
    except ValueError as error:
        log.warning("skipped a record that is not a dead letter: %s", error)
        return None
