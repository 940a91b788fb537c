"""Header names that are not UTF-8: aiokafka's consumers raise on one, and never get past its record.

Kafka's protocol says that a header's name is UTF-8 (KIP-82), but no broker checks it. A batch with such a name is read
by aiokafka's reader in Python, and what is not UTF-8 in the name is written as `\\xNN`; every other batch goes through
the fast reader in C.

It replaces two names of aiokafka/consumer/fetcher.py, which `Fetcher._proc_fetch_request` uses: `MemoryRecords`, the
bytes of a fetch, and `PartitionRecords`, whose `_unpack_records` reads them. It builds on `PartitionRecords._records`,
`._records_iterator` and `.next_fetch_offset`, on aiokafka/record/memory_records.py: `_MemoryRecordsPy._next_slice`,
`._cache_next`, and on aiokafka/record/default_records.py: `_DefaultRecordBatchPy._maybe_uncompress`, whose `_buffer`
`_read_msg` reads.
"""

from typing import Any

from aiokafka.consumer import fetcher
from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords, _MemoryRecordsPy


class _Text(bytearray):
    """Bytes of which each part can be decoded."""

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
    """What a fetch has brought, from the first batch on that does not end before an offset."""

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


def escape_what_is_not_utf8() -> None:
    """Has all consumers of this process read such names; may be called again."""
    fetcher.MemoryRecords, fetcher.PartitionRecords = _KeptRecords, _Records
