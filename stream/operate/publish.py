"""Publishes chunks from JSON lines to the topic: checks each line and sends it unchanged."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from stream import mapping
from stream.config import Settings
from stream.contracts import problem
from stream.errors import ConfigurationError
from stream.kafka import clients, topics
from stream.records import Decoder

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

    Empty lines are skipped. `progress` gets the size of each line in bytes as it is read. Raises `ConfigurationError`
    if the workers would reject plain JSON.
    """
    if settings.value_format == "confluent":
        raise ConfigurationError(
            "lines are published as plain JSON, which STREAM_VALUE_FORMAT=confluent does not read: set it to auto, or "
            "publish with a serializer of JSON Schema"
        )
    await topics.check(settings, [settings.topic])
    decoder = decoder_of_lines(settings)
    published = Published()
    async with clients.producer(settings) as producer:
        waiting: list[asyncio.Future[object]] = []
        for number, value in _numbered(lines, progress):
            chunk, wrong = check_line(value, decoder)
            if wrong:
                published.bad[number] = wrong
                continue
            waiting.append(await producer.send(settings.topic, value=value, key=chunk["chunk_id"].encode()))
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


def validate(lines: Iterable[bytes], settings: Settings) -> Validated:
    """Checks lines as `publish` does, without a connection to any server."""
    decoder = decoder_of_lines(settings)
    validated = Validated()
    numbered = 0
    for number, value in _numbered(lines):
        chunk, wrong = check_line(value, decoder)
        if wrong:
            validated.bad[number] = wrong
        else:
            validated.good += 1
            numbered += "version" in chunk
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


def check_line(value: bytes, decoder: Decoder) -> tuple[dict[str, Any], str | None]:
    """The chunk of a line of JSON, and what is wrong with it, if anything."""
    try:
        chunk = decoder.content(value, ())
    except ValueError as error:
        return {}, str(error)
    if wrong := problem(chunk, "chunk"):
        return {}, mapping.explained(wrong, decoder.field_mapping)
    size = len(chunk["chunk_id"].encode()) + len(value)
    if size > decoder.max_bytes:
        return {}, f"the record has {size:,} bytes, the limit is {decoder.max_bytes:,}"
    return chunk, None


def decoder_of_lines(settings: Settings) -> Decoder:
    """As the workers decode records, but a line is plain JSON."""
    return Decoder.of("chunk", settings.model_copy(update={"value_format": "json"}))
