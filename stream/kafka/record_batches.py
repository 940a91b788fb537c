"""Batches that a broker may store and that aiokafka's consumers cannot read: they raise an error, and stay before it.

- **A header's name that is not UTF-8.** Kafka's protocol requires UTF-8 (KIP-82), but brokers do not check it.
  aiokafka's Python reader reads a batch with such a name and writes each byte that is not UTF-8 as `\\xNN`. aiokafka's
  fast C reader reads all other batches.
- **A transaction marker without its record.** Compaction removes the marker's record, but keeps its empty batch while
  the producer's epoch is the newest one of its id. As in Kafka's Java consumer, such a batch ends no transaction.

This module replaces two names of aiokafka/consumer/fetcher.py that `Fetcher._proc_fetch_request` uses: `MemoryRecords`,
the bytes of a fetch, and `PartitionRecords`, whose `_unpack_records` reads them. It depends on these names of aiokafka:

- consumer/fetcher.py: `PartitionRecords._records`, `._records_iterator`, `._contains_abort_marker` and
  `.next_fetch_offset`;
- record/memory_records.py: `_MemoryRecordsPy._next_slice` and `._cache_next`;
- record/default_records.py: `_DefaultRecordBatchPy._maybe_uncompress` and `._buffer`, which `_read_msg` reads.
"""

from typing import Any

from aiokafka.consumer import fetcher
from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.record.control_record import ABORT_MARKER, ControlRecord
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords, _MemoryRecordsPy


class _Text(bytearray):
    """Bytes whose slices decode without an error: invalid UTF-8 is escaped."""

    def __getitem__(self, index: Any) -> Any:
        part = super().__getitem__(index)
        return _Text(part) if isinstance(index, slice) else part

    def decode(self, encoding: str = "utf-8", errors: str = "backslashreplace") -> str:
        return super().decode(encoding, errors)


class _EscapingBatch(_DefaultRecordBatchPy):  # type: ignore[misc]
    def _maybe_uncompress(self) -> None:
        super()._maybe_uncompress()
        self._buffer: bytearray = _Text(self._buffer)


class _EscapingRecords(_MemoryRecordsPy):  # type: ignore[misc]
    """The batches of a fetch, starting with the first one whose end is at or after an offset."""

    def __init__(self, data: bytes, offset: int) -> None:
        super().__init__(data)
        while self._next_slice is not None and _DefaultRecordBatchPy(self._next_slice).next_offset <= offset:
            self._cache_next()

    def next_batch(self) -> Any:
        part = self._next_slice
        self._cache_next()
        return _EscapingBatch(part)


class _KeptRecords(MemoryRecords):  # type: ignore[misc]
    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.data = data


class _Records(PartitionRecords):  # type: ignore[misc]
    def __next__(self) -> Any:
        try:
            return super().__next__()
        except UnicodeDecodeError:
            self._records: Any = _EscapingRecords(self._records.data, self.next_fetch_offset)
            self._records_iterator = self._unpack_records()
            return super().__next__()

    def _contains_abort_marker(self, next_batch: Any) -> bool:
        record = next(next_batch, None)
        return record is not None and ControlRecord.parse(record.key) == ABORT_MARKER


def read_every_batch() -> None:
    """Makes all consumers of this process read such batches. A second call changes nothing."""
    fetcher.MemoryRecords, fetcher.PartitionRecords = _KeptRecords, _Records
