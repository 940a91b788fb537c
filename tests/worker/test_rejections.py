"""If these fail, a producer's error fills the dead-letter queue, or a few bad records stop a worker."""

from itertools import groupby

from hypothesis import given
from hypothesis import strategies as st

from stream.records import Position
from stream.worker.rejections import Flood, Rejections


def at(*offsets, partition=0):
    return [Position("chunks", partition, offset) for offset in offsets]


def letters(outcomes, share, count, sizes):
    """The offsets that get a dead letter until a flood ends the worker; each size is a batch, 0 a restart."""
    written, next_offset = [], 0
    known = Rejections(share, count)
    for size in sizes:
        if size == 0:
            known = Rejections(share, count, at(*written))
            continue
        batch = range(next_offset, min(next_offset + size, len(outcomes)))
        rejected = [offset for offset in batch if outcomes[offset]]
        if known.flood(at(*rejected)):
            known = Rejections(share, count, at(*written))  # it starts again, with the same batch
            continue
        written += rejected
        next_offset = batch.stop
    return written


def most_within(offsets, count):
    return max((sum(start <= offset < start + count for offset in offsets) for start in offsets), default=0)


@given(
    st.lists(st.booleans(), max_size=60),
    st.floats(0.01, 1),
    st.integers(1, 20),
    st.lists(st.integers(0, 8), max_size=40),
)
def test_no_batches_and_no_restarts_lead_to_more_letters_than_the_share(outcomes, share, count, sizes):
    assert most_within(letters(outcomes, share, count, sizes), count) <= share * count + 1e-6


@given(st.lists(st.booleans(), max_size=60), st.floats(0.01, 1), st.integers(1, 20), st.integers(1, 60))
def test_records_that_are_never_mostly_rejected_never_stop_a_worker(outcomes, share, count, size):
    rejected = [offset for offset, bad in enumerate(outcomes) if bad]
    if most_within(rejected, count) <= share * count:
        assert letters(outcomes, share, count, [size] * 60) == rejected


def test_a_trickle_and_a_short_run_are_no_flood_and_a_schema_error_is():
    trickle = Rejections(0.9, 1000)
    assert not any(trickle.flood(at(offset)) for offset in range(0, 1_000_000, 50))
    run = Rejections(0.9, 1000)
    assert run.flood(at(*range(900))) is None
    assert run.flood(at(1000)) is None
    schema_error = Rejections(0.9, 1000)
    assert schema_error.flood(at(*range(900))) is None
    assert schema_error.flood(at(900)) == Flood(901, at(900))


def test_each_partition_counts_alone():
    known = Rejections(0.5, 10)
    for partition, offsets in groupby(range(8), key=lambda n: n % 4):
        assert known.flood(at(*offsets, partition=partition)) is None
    flood = known.flood(at(9, partition=1) + at(20, 21, 22, 23, 24, 25, partition=3))
    assert flood == Flood(6, at(20, 21, 22, 23, 24, 25, partition=3))


def test_records_that_are_delivered_again_count_once():
    known = Rejections(0.5, 10, at(0, 1, 2, 3))
    assert known.flood(at(0, 1, 2, 3)) is None
    assert known.flood(at(3, 4)) is None
    assert known.flood(at(5)) == Flood(6, at(5))


def test_a_share_of_one_lets_everything_through():
    known = Rejections(1, 10)
    assert not any(known.flood(at(*range(n, n + 7))) for n in range(0, 700, 7))


def test_a_share_that_no_binary_number_is_equal_to_means_what_it_says():
    known = Rejections(0.29, 100)
    assert known.flood(at(*range(29))) is None
    assert known.flood(at(29)) is not None


def test_letters_of_long_ago_do_not_count():
    """A worker that is restarted after months must not stop at one bad record."""
    known = Rejections(0.5, 10, at(*range(10)))
    assert known.flood(at(19)) is None
