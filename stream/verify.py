"""The checker: is every chunk of the topic in both stores, as it was published, or accounted for by its dead letter?

The topic is the truth: of each chunk the record with the highest version, tombstones included (of equal versions the
later one). Memory is one small entry a chunk; the stores are read in pages.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import orjson

from stream import deadletters
from stream.config import STAGES, Settings
from stream.deadletters import DeadLetter
from stream.kafka import read_to_end
from stream.records import Rejected, Tombstone, decode, text_sha256
from stream.stores import Stores
from stream.stores.base import Stored

PAGE = 500  # chunks asked of the stores at once
RECHECK_PAUSE = 0.5  # seconds
NAMED = 20  # differences that a report names

Place = tuple[int, int]  # partition, offset


class Truth(NamedTuple):
    """The newest record of a chunk; no hash means deleted."""

    version: int
    sha256: bytes | None


@dataclass
class Report:
    """What was found. `differences` names the first; `different` counts them all."""

    published: int = 0
    indexed: int = 0
    deleted: int = 0
    dead_lettered: int = 0
    different: int = 0
    differences: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Nothing is lost and nothing is wrong."""
        return not self.different

    def differs(self, what: str) -> None:
        """Notes one difference."""
        self.different += 1
        if len(self.differences) < NAMED:
            self.differences.append(what)


@dataclass
class _Topic:
    """What the topics say: the truth of each chunk, records that are not chunks, and dead letters of either."""

    truths: dict[str, Truth] = field(default_factory=dict)
    broken: dict[Place, str] = field(default_factory=dict)
    dead_places: set[Place] = field(default_factory=set)
    dead_versions: set[tuple[str, int]] = field(default_factory=set)


async def verify(
    settings: Settings, stores: Stores, *, wait: float = 0, progress: Callable[[int, int], None] = lambda *_: None
) -> Report:
    """Compares both stores with the topic as it is now.

    A chunk that differs is looked at again for `wait` seconds, because it may still be on its way. `progress` is
    told how many chunks of how many were compared.
    """
    topic = await _read(settings)
    deadline = asyncio.get_running_loop().time() + wait
    pending = list(topic.truths)
    differences = await _compare(topic, stores, pending, progress)
    while differences and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(RECHECK_PAUSE)
        await _read_dead_letters(settings, topic)
        differences = await _compare(topic, stores, list(differences), lambda *_: None)
    return await _report(topic, stores, differences)


async def _read(settings: Settings) -> _Topic:
    topic = _Topic()
    async for record in read_to_end(settings, settings.topic):
        match decode(record, "chunk", settings.max_record_bytes):
            case Rejected(detail=detail):
                topic.broken[record.partition, record.offset] = detail
            case Tombstone(chunk_id, version):
                _keep_newest(topic.truths, chunk_id, Truth(version, None))
            case chunk:
                truth = Truth(chunk["version"], bytes.fromhex(text_sha256(chunk["text"])))
                _keep_newest(topic.truths, chunk["chunk_id"], truth)
    await _read_dead_letters(settings, topic)
    return topic


def _keep_newest(truths: dict[str, Truth], chunk_id: str, truth: Truth) -> None:
    if chunk_id not in truths or truth.version >= truths[chunk_id].version:
        truths[chunk_id] = truth


async def _read_dead_letters(settings: Settings, topic: _Topic) -> None:
    for stage in STAGES:
        async for letter in deadletters.read(settings, stage):
            if letter.topic == settings.topic:
                topic.dead_places.add((letter.partition, letter.offset))
            if identity := _identity(letter):
                topic.dead_versions.add(identity)


def _identity(letter: DeadLetter) -> tuple[str, int] | None:
    """Chunk and version of a dead letter; None if it is not even JSON."""
    try:
        chunk = orjson.loads(letter.record.value or b"")
        return chunk["chunk_id"], int(chunk.get("version", letter.timestamp))
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


async def _compare(
    topic: _Topic, stores: Stores, chunk_ids: Sequence[str], progress: Callable[[int, int], None]
) -> dict[str, str]:
    """What differs, by chunk_id."""
    differences = {}
    for start in range(0, len(chunk_ids), PAGE):
        page = chunk_ids[start : start + PAGE]
        found = await asyncio.gather(*(store.stored(page) for store in stores.both))
        for chunk_id in page:
            truth = topic.truths[chunk_id]
            if (chunk_id, truth.version) in topic.dead_versions:
                continue
            wrong = [
                f"{store.name} {what}"
                for store, stored in zip(stores.both, found, strict=True)
                if (what := _difference(truth, stored.get(chunk_id)))
            ]
            if wrong:
                differences[chunk_id] = f"{chunk_id}: {', '.join(wrong)}"
        progress(start + len(page), len(chunk_ids))
    return differences


def _difference(truth: Truth, stored: Stored | None) -> str | None:
    if truth.sha256 is None:
        return "still has it, although it was deleted" if stored else None
    if stored is None:
        return "does not have it"
    if stored.version != truth.version:
        return f"has version {stored.version}, the topic {truth.version}"
    if stored.text_sha256 != truth.sha256.hex():
        return "has another text"
    return None if stored.complete else "has it without its vector or terms"


async def _report(topic: _Topic, stores: Stores, differences: dict[str, str]) -> Report:
    report = Report(published=len(topic.truths) + len(topic.broken))
    for (partition, offset), detail in topic.broken.items():
        if (partition, offset) in topic.dead_places:
            report.dead_lettered += 1
        else:
            report.differs(f"partition {partition}, offset {offset}: has no dead letter ({detail})")
    for chunk_id, truth in topic.truths.items():
        if chunk_id in differences:
            report.differs(differences[chunk_id])
        elif (chunk_id, truth.version) in topic.dead_versions:
            report.dead_lettered += 1
        elif truth.sha256 is None:
            report.deleted += 1
        else:
            report.indexed += 1
    for store in stores.both:
        held, most = await store.count(), report.indexed + report.dead_lettered + report.different
        if held > most:
            report.differs(f"{store.name} holds {held - most} chunks more than the topic knows")
    return report
