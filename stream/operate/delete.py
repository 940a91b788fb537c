"""Deletes a document: publishes a tombstone for each of its chunks, in every partition that holds the chunk's key.

The topic says which chunks the document has, not a store: the topic also has the chunks that no stage has processed
yet. A key is in several partitions if producers use different partitioners. A tombstone in only one of them leaves the
records of the others in the topic, and a reindex would bring them back once Kafka has removed the tombstone.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from stream.config import Settings
from stream.kafka import clients, reader, topics
from stream.operate.copies import Copies
from stream.records import MAX_VERSION, VERSION_HEADER, Decoded, Decoder, Record, Rejected, Tombstone


@dataclass(frozen=True, slots=True)
class Deletion:
    """A chunk to delete, the version of its tombstones, and the partitions that get one.

    Each partition has the offset up to which it was read: records at this offset or after it were published meanwhile.
    """

    chunk_id: str
    version: int
    partitions: Mapping[int, int]


@dataclass(slots=True)
class _Held:
    """A partition's record of a chunk with the highest version (of equal versions the later one).

    `last` is the `doc_id` of the partition's last record of the chunk. Both are None for a tombstone.
    """

    version: int
    timestamp: int
    doc_id: str | None
    last: str | None


async def chunks_of(
    settings: Settings, doc_id: str, progress: Callable[[int, int], None] = lambda *_: None
) -> list[Deletion]:
    """The chunks of the document that are not deleted yet, each with a version one above its newest record.

    A chunk is deleted if the last record of its key is a tombstone in every partition that holds the key. A chunk that
    was moved to another document belongs to that document. Reads the topic twice: only after the first pass are all
    keys of the document known. Memory grows with the number of chunks that the document has or had.
    """
    decode = Decoder.of("chunk", settings)
    keys: set[bytes | None] = set()
    async for record in reader.read_to_end(settings, settings.topic, progress=progress):
        match decode(record):
            case {"doc_id": found} if found == doc_id:
                keys.add(record.key)
    held: dict[bytes | None, dict[int, _Held]] = {}
    ends: dict[int, int] = {}
    async for record in reader.read_to_end(settings, settings.topic, progress=progress):
        ends[record.partition] = record.offset + 1
        if record.key in keys:
            _add(held.setdefault(record.key, {}), record, decode(record))
    deletions = []
    for key, partitions in held.items():
        newest = max(partitions.values(), key=lambda one: (one.version, one.timestamp))
        undone = newest.doc_id is None and any(one.last == doc_id for one in partitions.values())
        if key is not None and (newest.doc_id == doc_id or undone):
            version = min(newest.version + 1, MAX_VERSION)
            deletions.append(Deletion(key.decode(), version, {partition: ends[partition] for partition in partitions}))
    return deletions


def _add(partitions: dict[int, _Held], record: Record, decoded: Decoded) -> None:
    match decoded:
        case Rejected():
            return
        case Tombstone(_, version):
            doc_id = None
        case chunk:
            version, doc_id = chunk["version"], chunk["doc_id"]
    held = partitions.get(record.partition)
    if held is None or version >= held.version:
        partitions[record.partition] = _Held(version, record.timestamp, doc_id, doc_id)
    else:
        held.last = doc_id


async def delete(
    settings: Settings, deletions: list[Deletion], progress: Callable[[int], None] = lambda _: None
) -> list[str]:
    """Publishes the tombstones and waits until Kafka has acknowledged all of them; returns the chunks that stay.

    A chunk stays if it was published meanwhile with a version that is not below the tombstone's. Its record is sent
    again after the tombstone, because Kafka keeps the last record of a key and the stores keep the highest version.
    """
    await topics.check(settings, [settings.topic])
    versions = {deletion.chunk_id.encode(): deletion.version for deletion in deletions}
    decode = Decoder.of("chunk", settings)
    since = {partition: end for deletion in deletions for partition, end in deletion.partitions.items()}

    def outranks(record: Record) -> bool:
        match decode(record):
            case Rejected():
                return False
            case Tombstone(_, version):
                pass
            case chunk:
                version = chunk["version"]
        return version >= versions[record.key or b""]

    async with clients.producer(settings) as producer:
        copies = Copies(settings, producer, settings.topic)
        for done, deletion in enumerate(deletions, start=1):
            for partition, end in deletion.partitions.items():
                await copies.send(_tombstone(settings.topic, deletion, partition, end - 1))
            progress(done)
        newer = await copies.restore(since, outranks)
    return sorted({(record.key or b"").decode() for record in newer if record.value is not None})


def _tombstone(topic: str, deletion: Deletion, partition: int, newest: int) -> Record:
    """The tombstone, as a copy of the record at the offset `newest`: `Copies` takes records after it for newer."""
    headers = [(VERSION_HEADER, str(deletion.version).encode())]
    key, now = deletion.chunk_id.encode(), int(time.time() * 1000)
    return Record(topic, partition, newest, key, None, now, headers)
