"""Deleting a document: a tombstone for each of its chunks.

Which chunks it has the topic says, and not a store: it knows those too that are still on their way.
"""

from collections.abc import Callable

from stream import kafka, topics
from stream.config import Settings
from stream.records import MAX_VERSION, VERSION_HEADER, Rejected, Tombstone, decode


async def chunks_of(
    settings: Settings, doc_id: str, progress: Callable[[int, int], None] = lambda *_: None
) -> list[Tombstone]:
    """A tombstone for each chunk of the document that is not deleted yet, one version above the chunk's newest.

    A chunk that has moved to another document belongs to that. Memory grows with the document's chunks.
    """
    versions: dict[str, int] = {}
    gone: set[str] = set()
    async for record in kafka.read_to_end(settings, settings.topic, progress=progress):
        match decode(record, "chunk", settings.max_record_bytes):
            case Rejected():
                continue
            case Tombstone(chunk_id, version):
                belongs = False
            case chunk:
                chunk_id, version, belongs = chunk["chunk_id"], chunk["version"], chunk["doc_id"] == doc_id
        if (belongs or chunk_id in versions) and version >= versions.get(chunk_id, 0):
            versions[chunk_id] = version
            (gone.discard if belongs else gone.add)(chunk_id)
    return [
        Tombstone(chunk_id, min(version + 1, MAX_VERSION))
        for chunk_id, version in versions.items()
        if chunk_id not in gone
    ]


async def delete(
    settings: Settings, tombstones: list[Tombstone], progress: Callable[[int], None] = lambda _: None
) -> None:
    """Publishes the tombstones, all acknowledged when it returns."""
    await topics.check(settings, [settings.topic])
    async with kafka.producer(settings) as producer:
        sent = [
            await producer.send(
                settings.topic,
                key=tombstone.chunk_id.encode(),
                value=None,
                headers=[(VERSION_HEADER, str(tombstone.version).encode())],
            )
            for tombstone in tombstones
        ]
        for done, sending in enumerate(sent, start=1):
            await sending
            progress(done)
