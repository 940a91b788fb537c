"""index: writes expanded chunks to both stores, and deletes the chunks of tombstones."""

from collections.abc import Sequence

from stream.records import Done, Outcome, Placed, Rejected, Tombstone
from stream.stores.base import Put, Store, together
from stream.vectors import has_unit_norm, unpack


async def index(records: Sequence[Placed | Tombstone], *, stores: Sequence[Store], dimensions: int) -> list[Outcome]:
    """Writes the newest record of each chunk to all stores at the same time; it is done when all stores have it.

    A record that one store refuses is rejected, even if the others accept it. Raises `Outage` if any store is down;
    the others keep their writes, and the retry does not change these.
    """
    checked = [record if isinstance(record, Tombstone) else _put(record, dimensions) for record in records]
    outcomes: list[Outcome] = [write if isinstance(write, Rejected) else Done() for write in checked]
    waiting = {n: write for n, write in enumerate(checked) if not isinstance(write, Rejected)}
    while waiting:
        newest: dict[str, int] = {}
        for n, write in waiting.items():
            if write.chunk_id not in newest or write.version >= waiting[newest[write.chunk_id]].version:
                newest[write.chunk_id] = n
        writes = [waiting[n] for n in newest.values()]
        refused: dict[str, Rejected] = {}
        for answer in await together(*(store.write(writes) for store in stores)):
            refused |= answer
        for chunk_id, rejected in refused.items():
            outcomes[newest[chunk_id]] = rejected
        # If a chunk's newest record was refused, the next newest is written, as if the records had come one by one.
        waiting = {n: w for n, w in waiting.items() if w.chunk_id in refused and n != newest[w.chunk_id]}
    return outcomes


def _put(chunk: Placed, dimensions: int) -> Put | Rejected:
    try:
        vector = unpack(chunk["embedding_qwen"])
    except ValueError:
        return Rejected("embedding", "embedding_qwen is not a list of float32 numbers")
    if len(vector) != dimensions:
        return Rejected("embedding", f"embedding_qwen must have {dimensions} numbers, it has {len(vector)}")
    if not has_unit_norm(vector):  # Neo4j stores a zero vector, but never finds it
        return Rejected("embedding", "embedding_qwen is not finite or not of unit norm")
    return Put(chunk, vector)
