"""If these fail, a batch is larger than its limit, or loses a record."""

import pytest

from stream.batches import split


@pytest.mark.parametrize(
    ("sizes", "parts"),
    [
        ([], []),
        ([4, 4], [[4, 4]]),
        ([4, 4, 2, 1], [[4, 4, 2], [1]]),
        ([4, 7, 3], [[4], [7, 3]]),
        ([1, 50, 1, 1], [[1], [50], [1, 1]]),
        ([50], [[50]]),
        ([10, 0, 0], [[10, 0, 0]]),
    ],
)
def test_runs_of_at_most_ten_keep_every_item_in_order(sizes, parts):
    assert list(split(sizes, int, 10)) == parts
