"""The checker: is every chunk of the topic in both stores, or accounted for by its dead letter?

The topic is the truth: of each chunk the record with the highest version, tombstones included (of equal versions the
later one). A store agrees if it has that version, with that text, and its vector or terms. Memory is one small entry a
chunk; the stores are read in pages.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import orjson

from stream import deadletters
from stream.config import STAGES, Settings
from stream.deadletters import DeadLetter
from stream.kafka import read_to_end
from stream.records import Record, Rejected, Tombstone, decode, text_sha256
from stream.stores import Stores
from stream.stores.base import Store, Stored

PAGE = 500  # chunks asked of the stores at once
RECHECK_PAUSE = 0.5  # seconds
NAMED = 20  # differences that a report names

Place = tuple[int, int]  # partition, offset


class Truth(NamedTuple):
    """The newest record of a chunk and where it is; no hash means deleted."""

    version: int
    sha256: bytes | None
    place: Place


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


async def verify(
    settings: Settings, stores: Stores, *, wait: float = 0, progress: Callable[[int, int], None] = lambda *_: None
) -> Report:
    """Compares both stores with the topic.

    While anything differs, what was published since is read too and what differs is looked at again, for `wait`
    seconds: it may be on its way. `progress` is told how many chunks of how many were compared.
    """
    topic = _Topic(settings)
    changed = await topic.read_on()
    comparison = _Comparison(topic, stores)
    deadline = asyncio.get_running_loop().time() + wait
    await comparison.compare(changed, progress)
    while not (report := await comparison.report()).clean and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(RECHECK_PAUSE)
        changed = await topic.read_on()
        await comparison.compare(changed | comparison.differences.keys(), lambda *_: None)
    return report


class _Topic:
    """What the topics say: the truth of each chunk, the records that are no chunks, the dead letters of either."""

    def __init__(self, settings: Settings) -> None:
        self.truths: dict[str, Truth] = {}
        self.broken: dict[Place, str] = {}
        self._settings = settings
        self._read: dict[int, int] = {}  # the next offset, by partition
        self._dead_places: set[Place] = set()
        self._dead_versions: set[tuple[str, int, bytes]] = set()

    async def read_on(self) -> set[str]:
        """Reads what is new; returns the chunks whose truth it changed."""
        changed = set()
        async for record in read_to_end(self._settings, self._settings.topic, self._read):
            self._read[record.partition] = record.offset + 1
            if chunk_id := self._note(record):
                changed.add(chunk_id)
        self._dead_places.clear()  # a letter accounts for its record only until it is redriven
        self._dead_versions.clear()
        for stage in STAGES:
            async for letter in deadletters.read(self._settings, stage):
                self._note_letter(letter)
        return changed

    def is_dead(self, chunk_id: str) -> bool:
        """Whether the newest record of a chunk has a dead letter: by its place, or as what a later stage made of it."""
        truth = self.truths[chunk_id]
        return truth.place in self._dead_places or (
            truth.sha256 is not None and (chunk_id, truth.version, truth.sha256) in self._dead_versions
        )

    def is_dead_at(self, place: Place) -> bool:
        """Whether the record there has a dead letter."""
        return place in self._dead_places

    def _note(self, record: Record) -> str | None:
        place = record.partition, record.offset
        match decode(record, "chunk", self._settings.max_record_bytes):
            case Rejected(detail=detail):
                self.broken[place] = detail
                return None
            case Tombstone(chunk_id, version):
                truth = Truth(version, None, place)
            case chunk:
                chunk_id = chunk["chunk_id"]
                truth = Truth(chunk["version"], bytes.fromhex(text_sha256(chunk["text"])), place)
        if chunk_id in self.truths and truth.version < self.truths[chunk_id].version:
            return None
        self.truths[chunk_id] = truth
        return chunk_id

    def _note_letter(self, letter: DeadLetter) -> None:
        place = letter.partition, letter.offset
        if letter.redriven is not None:
            if letter.topic == self._settings.topic:
                self.broken.pop(place, None)  # its copy at the end of the topic stands for it
            return
        if letter.topic == self._settings.topic:
            self._dead_places.add(place)
            return
        try:
            chunk = orjson.loads(letter.record.value or b"")
            chunk_id, version, sha256 = chunk["chunk_id"], chunk["version"], bytes.fromhex(text_sha256(chunk["text"]))
        except (ValueError, TypeError, KeyError, AttributeError):
            return  # not what a stage publishes: it accounts for no chunk
        if isinstance(chunk_id, str) and isinstance(version, int):
            self._dead_versions.add((chunk_id, version, sha256))


class _Comparison:
    """What the stores say of the topic's chunks."""

    def __init__(self, topic: _Topic, stores: Stores) -> None:
        self.differences: dict[str, str] = {}
        self._topic = topic
        self._stores: tuple[Store, ...] = stores.both
        self._absent: dict[str, set[str]] = {store.name: set() for store in self._stores}

    async def compare(self, chunk_ids: Iterable[str], progress: Callable[[int, int], None]) -> None:
        ids = list(chunk_ids)
        for start in range(0, len(ids), PAGE):
            page = ids[start : start + PAGE]
            found = await asyncio.gather(*(store.stored(page) for store in self._stores))
            for chunk_id in page:
                self._compare_one(chunk_id, [stored.get(chunk_id) for stored in found])
            progress(start + len(page), len(ids))

    def _compare_one(self, chunk_id: str, found: list[Stored | None]) -> None:
        wrong = []
        for store, stored in zip(self._stores, found, strict=True):
            if stored is None:
                self._absent[store.name].add(chunk_id)
            else:
                self._absent[store.name].discard(chunk_id)
            if what := _difference(self._topic.truths[chunk_id], stored):
                wrong.append(f"{store.name} {what}")
        if wrong:
            self.differences[chunk_id] = f"{chunk_id}: {', '.join(wrong)}"
        else:
            self.differences.pop(chunk_id, None)

    async def report(self) -> Report:
        truths, broken = self._topic.truths, self._topic.broken
        report = Report(published=len(truths) + len(broken))
        for (partition, offset), detail in broken.items():
            if self._topic.is_dead_at((partition, offset)):
                report.dead_lettered += 1
            else:
                report.differs(f"partition {partition}, offset {offset}: has no dead letter ({detail})")
        for chunk_id, truth in truths.items():
            if chunk_id not in self.differences:
                report.deleted += truth.sha256 is None
                report.indexed += truth.sha256 is not None
            elif self._topic.is_dead(chunk_id):
                report.dead_lettered += 1
            else:
                report.differs(self.differences[chunk_id])
        for store in self._stores:
            strangers = await store.count() - (len(truths) - len(self._absent[store.name]))
            if strangers > 0:
                report.differs(f"{store.name} holds {strangers} chunks more than the topic knows")
        return report


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
