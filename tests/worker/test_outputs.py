"""If these fail, nobody knows how long a chunk took from its producer to the stores."""

import time

import pytest
from support import record

from stream.records import Record, Tombstone
from stream.worker.loop import age
from stream.worker.outputs import encoded

HOUR = 3600


def passed_on(made_of: Record, output: dict | Tombstone) -> Record:
    """The output as the next stage gets it, one second later."""
    value, headers = encoded(made_of, output)
    return record(value, headers=headers, timestamp=made_of.timestamp + 1000)


@pytest.mark.parametrize("output", [{"chunk_id": "c1"}, Tombstone("c1", 1)], ids=["chunk", "tombstone"])
@pytest.mark.parametrize("headers", [[], [("published", b"yesterday")], [("published", None)]])
def test_an_output_remembers_when_its_chunk_was_published(output, headers):
    published = round((time.time() - HOUR) * 1000)
    embedded = passed_on(record({}, headers=[("trace", b"1"), *headers], timestamp=published), output)
    expanded = passed_on(embedded, output)
    assert ("trace", b"1") in expanded.headers
    assert [age(one) for one in (embedded, expanded)] == pytest.approx([HOUR, HOUR], abs=60)


def test_a_record_without_a_time_has_no_age_to_pass_on():
    assert encoded(record({}, timestamp=-1), {})[1] == []


def test_a_producer_whose_clock_is_ahead_has_chunks_of_no_age():
    assert age(record({}, timestamp=round((time.time() + HOUR) * 1000))) == 0
