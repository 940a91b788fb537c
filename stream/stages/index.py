"""index: expanded chunks into both stores, tombstones out of them."""

import asyncio
from collections.abc import Sequence

import numpy as np

from stream.models.embeddings import unpack
from stream.records import Done, Expanded, Outcome, Rejected, Tombstone
from stream.stores.base import Put, Store


async def index(records: Sequence[Expanded | Tombstone], *, stores: Sequence[Store], dimensions: int) -> list[Outcome]:
    """Writes the newest record of each chunk to all stores at the same time; done when all have it.

    A record that one store refuses is rejected, whatever the others said. Raises `Outage` if any store is down; the
    others keep what they took, which writing again does not change.
    """
    checked = [record if isinstance(record, Tombstone) else _put(record, dimensions) for record in records]
    newest: dict[str, Put | Tombstone] = {}
    for write in checked:
        if not isinstance(write, Rejected) and (
            write.chunk_id not in newest or write.version >= newest[write.chunk_id].version
        ):
            newest[write.chunk_id] = write
    # Every store is waited for, also when one fails: a write that goes on behind a retry could overtake it.
    answers = await asyncio.gather(*(store.write(list(newest.values())) for store in stores), return_exceptions=True)
    refused: dict[str, Rejected] = {}
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
        refused |= answer
    return [
        write if isinstance(write, Rejected)
        else refused[write.chunk_id] if write is newest[write.chunk_id] and write.chunk_id in refused
        else Done()
        for write in checked
    ]  # fmt: skip


def _put(chunk: Expanded, dimensions: int) -> Put | Rejected:
    try:
        vector = unpack(chunk["embedding_qwen"])
    except ValueError:
        return Rejected("embedding", "embedding_qwen is not base64 of float32 numbers")
    if len(vector) != dimensions or not np.isfinite(vector).all():
        return Rejected("embedding", f"embedding_qwen must be {dimensions} finite numbers, it has {len(vector)}")
    return Put(chunk, vector)
