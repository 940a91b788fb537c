"""Publishes chunks from JSON lines to the topic: checks each line and sends it unchanged."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import orjson

from stream.config import Settings
from stream.contracts import problem
from stream.kafka import clients, topics

UNACKNOWLEDGED = 1000  # at most so many records wait for Kafka's acknowledgement


@dataclass
class Published:
    """The result: the number of lines sent, and what is wrong with the others, by line number from 1."""

    sent: int = 0
    bad: dict[int, str] = field(default_factory=dict)


async def publish(
    lines: Iterable[bytes], settings: Settings, progress: Callable[[int], None] = lambda _: None
) -> Published:
    """Sends every line that keeps the chunk contract; returns when Kafka has acknowledged them all.

    Empty lines are skipped. `progress` gets the size of each line in bytes as it is read.
    """
    await topics.check(settings, [settings.topic])
    published = Published()
    async with clients.producer(settings) as producer:
        waiting: list[asyncio.Future[object]] = []
        for number, value in _numbered(lines, progress):
            key, wrong = check_line(value, settings.max_record_bytes)
            if wrong:
                published.bad[number] = wrong
                continue
            waiting.append(await producer.send(settings.topic, value=value, key=key))
            published.sent += 1
            if len(waiting) >= UNACKNOWLEDGED:
                await asyncio.gather(*waiting)
                waiting.clear()
        await asyncio.gather(*waiting)
    return published


@dataclass
class Validated:
    """The number of valid lines, what is wrong with the others by line number from 1, and likely mistakes."""

    good: int = 0
    bad: dict[int, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def validate(lines: Iterable[bytes], max_bytes: int) -> Validated:
    """Checks lines as `publish` does, without a connection to any server."""
    validated = Validated()
    numbered = 0
    for number, value in _numbered(lines):
        _, wrong = check_line(value, max_bytes)
        if wrong:
            validated.bad[number] = wrong
        else:
            validated.good += 1
            numbered += "version" in orjson.loads(value)
    if 0 < numbered < validated.good:
        validated.remarks.append(
            f"{numbered:,} chunks have a version and {validated.good - numbered:,} have none: a chunk without one gets "
            "the time of publishing in ms as its version, which is higher than usual version numbers"
        )
    return validated


def _numbered(lines: Iterable[bytes], progress: Callable[[int], None] = lambda _: None) -> Iterator[tuple[int, bytes]]:
    """The lines that are not empty, with their numbers from 1."""
    for number, line in enumerate(lines, start=1):
        progress(len(line))
        if value := line.strip():
            yield number, value


def check_line(value: bytes, max_bytes: int) -> tuple[bytes, str | None]:
    """The Kafka key of a chunk's JSON, and what is wrong with it, if anything."""
    try:
        chunk = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        return b"", f"not JSON: {error}"
    if wrong := problem(chunk, "chunk"):
        return b"", wrong
    key = chunk["chunk_id"].encode()
    if len(key) + len(value) > max_bytes:
        return key, f"the record has {len(key) + len(value):,} bytes, the limit is {max_bytes:,}"
    return key, None
