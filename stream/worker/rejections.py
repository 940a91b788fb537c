"""Finds a flood of rejected records, so that the worker ends before the flood fills the dead-letter queue.

A flood is more than `share` of `count` consecutive offsets of one partition. What counts is where the rejected records
are, not when they were rejected or by which worker. So a restart, a rebalance and a second delivery change nothing: the
dead letters tell a new worker which records were rejected before.

An offset without a record (a transaction's marker, a record that compaction has removed) counts as one that was not
rejected.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from stream.records import Position


class Flood(NamedTuple):
    """How many of `count` consecutive offsets of a partition are rejected, and those of them in the last batch."""

    rejected: int
    batch: list[Position]


class Rejections:
    """The rejected records of the partitions that a worker reads. `known` are those that have a dead letter."""

    def __init__(self, share: float, count: int, known: Iterable[Position] = ()) -> None:
        self._count = count
        self._most = round(share * count, 6)  # 0.29 * 100 is 28.999999999999996
        self._offsets: dict[int, set[int]] = defaultdict(set)
        for position in known:
            self._offsets[position.partition].add(position.offset)

    def flood(self, rejected: Iterable[Position]) -> Flood | None:
        """Adds the rejected records of a batch, which are in the order of their partitions; the flood they complete."""
        batches: dict[int, list[Position]] = defaultdict(list)
        for position in rejected:
            batches[position.partition].append(position)
        for partition, batch in batches.items():
            first, last = batch[0].offset, batch[-1].offset
            offsets = {offset for offset in self._offsets[partition] if offset > first - self._count}
            offsets.update(position.offset for position in batch)
            self._offsets[partition] = offsets
            near = sorted(offset for offset in offsets if offset < last + self._count)
            most = max(bisect_left(near, start + self._count) - i for i, start in enumerate(near))
            if most > self._most:
                return Flood(most, batch)
        return None
