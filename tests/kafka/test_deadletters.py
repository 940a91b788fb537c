"""If these fail, a rejected record cannot be found, understood or put back as it was."""

import time

import pytest
from support import record

from stream.config import STAGES
from stream.contracts import problem
from stream.kafka import clients, deadletters, topics
from stream.kafka.deadletters import (
    DETAIL_LENGTH,
    DeadLetter,
    Filter,
    Place,
    letter_headers,
    redriven_headers,
    redriven_place,
    without_letter,
)
from stream.records import Record, Rejected

WRONG = Rejected("schema", "text: must contain more than white space")
OWN = [("traceparent", b"00-1"), ("version", b"7")]


def letter(original: Record, rejected: Rejected = WRONG) -> Record:
    """The record's dead letter of embed, as the loop publishes it."""
    return record(original.value, original.key, headers=letter_headers(original, "embed", rejected))


def test_a_letter_says_where_its_record_came_from_when_and_why():
    before = int(time.time() * 1000)
    original = Record("chunks", 3, 1234, b"c1", b"\xff", 1767225600000)
    read = DeadLetter.of(letter(original))
    assert (read.stage, read.reason, read.detail) == ("embed", WRONG.reason, WRONG.detail)
    assert (read.topic, read.partition, read.offset, read.timestamp) == ("chunks", 3, 1234, 1767225600000)
    assert (read.record.key, read.record.value) == (original.key, original.value)
    assert before <= read.at <= time.time() * 1000
    assert read.attempts == 1


def test_a_record_rejected_again_gets_back_its_own_headers_and_counts_on():
    again = letter(letter(record(b"\xff", headers=OWN)))
    assert without_letter(again.headers) == OWN
    assert DeadLetter.of(again).attempts == 2
    assert len({name for name, _ in again.headers}) == len(again.headers)


def test_a_long_story_is_cut():
    assert len(DeadLetter.of(letter(record(b""), Rejected("schema", "字" * 5000))).detail) == DETAIL_LENGTH


@pytest.mark.parametrize("attempts", [b"many", b"", b"\xff", "٣".encode(), None])
def test_a_header_of_somebody_else_s_making_does_not_stop_the_stage(attempts):
    original = record(b"\xff", headers=[("dlq.attempts", attempts)])
    assert DeadLetter.of(letter(original)).attempts == 1


def test_a_letter_of_a_record_without_a_timestamp_keeps_the_contract():
    written = letter(record(b"", timestamp=-1))
    assert problem({name: value.decode() for name, value in written.headers}, "dead-letter") is None
    assert DeadLetter.of(written).timestamp == -1


def test_a_record_that_is_no_letter_is_named():
    with pytest.raises(ValueError, match=r"chunks/0@0 lacks the header dlq\.stage"):
        DeadLetter.of(record(b"\xff"))


@pytest.mark.parametrize("text", ["", "1", "@", "1@", "@1", "-1@2", "1@2@3", "a@b"])
def test_what_is_no_place_is_not_taken_for_one(text):
    with pytest.raises(ValueError, match="PARTITION@OFFSET"):
        Place.of(text)
    assert redriven_place(record(b"", headers=[("dlq.redriven", text.encode())])) is None


def test_a_marker_names_the_place_of_its_letter_and_keeps_the_contract():
    headers = redriven_headers(DeadLetter.of(letter(record(b""))))
    assert redriven_place(record(b"", headers=headers)) == Place(0, 0)
    assert problem({name: value.decode() for name, value in headers}, "redriven") is None


def test_a_filter_takes_from_its_beginning_until_before_its_end():
    found = DeadLetter.of(letter(record(b"", "k")))
    assert Filter(key=b"k", reason="schema", since=found.at, until=found.at + 1).takes(found)
    for other in (Filter(key=b"K"), Filter(reason="key"), Filter(since=found.at + 1), Filter(until=found.at)):
        assert not other.takes(found)


@pytest.mark.servers
async def test_a_letter_that_was_redriven_says_when_and_is_not_waiting(flow):
    topic = topics.dead_letters(flow, "embed")
    async with clients.producer(flow) as producer:
        for key in (b"a", b"b"):
            headers = letter_headers(record(b"{", key), "embed", WRONG)
            await producer.send_and_wait(topic, key=key, value=b"{", headers=headers)
        first, _ = [one async for one in deadletters.read(flow, "embed")]
        await producer.send_and_wait(topic, key=b"a", value=b"", headers=redriven_headers(first))
    first, second = [one async for one in deadletters.read(flow, "embed")]
    assert first.redriven >= first.at
    assert second.redriven is None
    assert await deadletters.waiting(flow, "embed") == 1


@pytest.mark.servers
@pytest.mark.parametrize(("key", "value"), [(None, None), (None, b"{"), (b"a", None)])
async def test_a_letter_may_lack_its_key_its_value_or_both(flow, key, value):
    """Otherwise the worker ends at such a record after every restart."""
    async with clients.letter_producer(flow) as producer:
        headers = letter_headers(record(value, key), "embed", WRONG)
        await clients.send_letter(producer, topics.dead_letters(flow, "embed"), key, value, headers)
    (read,) = [one async for one in deadletters.read(flow, "embed")]
    assert (read.record.key, read.record.value, read.detail) == (key, value, WRONG.detail)


@pytest.mark.servers
@pytest.mark.parametrize("stage", STAGES)
async def test_a_stage_s_letters_are_read_oldest_first_with_their_bytes(flow, stage):
    originals = [record(value, key, headers=OWN) for key, value in [("a", b"\xff\x00"), (None, b"{"), ("b", None)]]
    async with clients.producer(flow) as producer:
        for original in originals:
            await producer.send_and_wait(
                topics.dead_letters(flow, stage),
                key=original.key,
                value=original.value,
                headers=letter_headers(original, stage, WRONG),
            )
    read = [letter async for letter in deadletters.read(flow, stage)]
    assert [(r.record.key, r.record.value) for r in read] == [(o.key, o.value) for o in originals]
    assert all(without_letter(r.record.headers) == OWN for r in read)
