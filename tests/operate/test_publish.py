"""If these fail, a valid chunk is not in the topic, or an invalid one is."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from support import chunk, read

from stream.config import only
from stream.errors import ConfigurationError
from stream.operate import publish as publishing
from stream.operate.publish import check_line, decoder_of_lines, publish, validate

LIMIT = 10_000
SETTINGS = only({"STREAM_MAX_RECORD_BYTES": str(LIMIT)})


def line(chunk_id: str = "c1", **fields: object) -> bytes:
    return json.dumps(chunk(chunk_id) | fields).encode()


def checked(value: bytes, **variables: str) -> tuple[dict[str, Any], str | None]:
    return check_line(value, decoder_of_lines(only({"STREAM_MAX_RECORD_BYTES": str(LIMIT)} | variables)))


def test_a_good_line_is_its_chunk():
    assert checked(line("字")) == (chunk("字"), None)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[]", "object"),
        (line(text=""), "text"),
        (line(chunk_id=7), "chunk_id"),
        (line(typo=1), "typo"),
        (line(text="x" * LIMIT), f"the limit is {LIMIT:,}"),
    ],
)
def test_a_bad_line_is_told_in_a_sentence(value, sentence):
    _, wrong = checked(value)
    assert sentence in wrong
    assert "\n" not in wrong


def test_a_line_is_as_large_as_the_record_that_it_becomes():
    value = line(text="x" * 2000)  # 1,024 bytes is the lowest limit
    exactly = len(b"c1") + len(value)
    assert checked(value, STREAM_MAX_RECORD_BYTES=str(exactly))[1] is None
    assert checked(value, STREAM_MAX_RECORD_BYTES=str(exactly - 1))[1]


def test_a_file_is_checked_without_kafka():
    found = validate([line("a"), b"", b"{", line("b", text=" ")], SETTINGS)
    assert found.good == 1
    assert list(found.bad) == [3, 4]
    assert found.remarks == []


def test_numbers_and_times_for_versions_in_one_file_are_remarked_on():
    undated = json.dumps({"chunk_id": "b", "doc_id": "d", "text": "t"}).encode()
    (remark,) = validate([line("a"), undated], SETTINGS).remarks
    assert remark.startswith("1 chunks have a version and 1 have none")


@pytest.mark.servers
async def test_all_of_many_lines_are_there_when_it_returns(flow, monkeypatch):
    monkeypatch.setattr(publishing, "UNACKNOWLEDGED", 10)
    published = await publish((line(f"c{n}", version=n) + b"\r\n" for n in range(25)), flow)
    assert (published.sent, published.bad) == (25, {})
    records = await read(flow, flow.topic)
    assert {r.key: r.value for r in records} == {f"c{n}".encode(): line(f"c{n}", version=n) for n in range(25)}


@pytest.mark.servers
async def test_records_of_one_chunk_stay_in_order(flow):
    await publish([line(version=n) for n in range(50)], flow)
    versions = [json.loads(r.value)["version"] for r in await read(flow, flow.topic)]
    assert versions == list(range(50))


@pytest.mark.servers
async def test_bad_lines_are_counted_from_one_with_the_empty_ones(flow):
    published = await publish([line("a"), b"\n", b"{", b"", line("b"), b"[]"], flow)
    assert published.sent == 2
    assert list(published.bad) == [3, 6]
    assert {r.key for r in await read(flow, flow.topic)} == {b"a", b"b"}


@pytest.mark.servers
async def test_progress_is_told_of_every_byte(flow):
    lines, told = [line("a") + b"\n", b"\n", b"{\n"], []
    await publish(lines, flow, told.append)
    assert sum(told) == len(b"".join(lines))


@pytest.mark.servers
async def test_nothing_is_read_when_the_topic_is_missing(settings):
    def untouched() -> Iterator[bytes]:
        raise AssertionError
        yield

    with pytest.raises(ConfigurationError, match=settings.topic):
        await publish(untouched(), settings)
