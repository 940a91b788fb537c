"""Dead letters: the original key and value untouched, and in headers why, where, when and how often.

`schemas/dead-letter.json` is the contract of the headers.
"""

import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from stream.config import Settings, StageName
from stream.kafka import read_to_end
from stream.records import Headers, Record, Rejected, header, number
from stream.topics import dead_letters

log = logging.getLogger(__name__)

PREFIX = "dlq."
DETAIL_LENGTH = 1000
LEFT_OUT_HEADER = "dlq.left-out"  # bytes of a value that Kafka would not take a second time


def without_letter(headers: Headers) -> list[tuple[str, bytes | None]]:
    """The headers that the record had before it became a dead letter."""
    return [(name, value) for name, value in headers if not name.startswith(PREFIX)]


def letter_headers(record: Record, stage: StageName, rejected: Rejected) -> list[tuple[str, bytes | None]]:
    """The headers of a record's dead letter: its own, and those of the contract."""
    attempts = (number(header(record.headers, "dlq.attempts")) or 0) + 1
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


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead letter as read back: `record` is where it lies now, the rest what its headers say."""

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

    @classmethod
    def of(cls, record: Record) -> "DeadLetter":
        """Reads the headers; raises `ValueError` if the record is no dead letter."""

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
        )


async def read(settings: Settings, stage: StageName) -> AsyncIterator[DeadLetter]:
    """A stage's dead letters, oldest first; a record that somebody else put there is passed over with a warning."""
    async for record in read_to_end(settings, dead_letters(settings, stage)):
        try:
            yield DeadLetter.of(record)
        except ValueError as error:
            log.warning("no dead letter: %s", error)
