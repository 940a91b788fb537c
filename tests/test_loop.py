"""If these fail, a batch is larger than it may be, or a record is left out of it."""

from types import SimpleNamespace

import pytest

from stream.loop import as_record, split_by_bytes
from stream.records import Record


def events(*sizes: int | None) -> list[SimpleNamespace]:
    values = (None if size is None else b"x" * size for size in sizes)
    return [SimpleNamespace(message=SimpleNamespace(value=value)) for value in values]


@pytest.mark.parametrize(
    ("sizes", "parts"),
    [
        ([], []),
        ([4, 4], [[4, 4]]),
        ([4, 4, 2, 1], [[4, 4, 2], [1]]),
        ([4, 7, 3], [[4], [7, 3]]),
        ([1, 50, 1, 1], [[1], [50], [1, 1]]),
        ([50], [[50]]),
        ([10, None, None], [[10, None, None]]),
    ],
)
def test_a_batch_is_cut_at_ten_bytes_and_keeps_every_record_in_order(sizes, parts):
    taken = events(*sizes)
    cut = list(split_by_bytes(taken, 10))
    assert [[e.message.value and len(e.message.value) for e in part] for part in cut] == parts
    assert [e for part in cut for e in part] == taken


@pytest.mark.parametrize("headers", [None, [], [("version", b"7")]])
def test_a_message_s_time_is_kept_to_the_millisecond_and_its_headers_with_it(headers):
    message = SimpleNamespace(
        topic="t", partition=1, offset=2, key=b"k", value=None, timestamp=1767225600.123, headers=headers
    )
    assert as_record(message) == Record("t", 1, 2, b"k", None, 1767225600123, tuple(headers or ()))
