"""Bad records among good ones: if these fail, a bad record is lost or makes good records fail."""

import json
from collections import Counter

import pytest
from aiokafka import AIOKafkaProducer
from ports import free_ports
from support import Worker, chunk, expanded, read, send

from stream.contracts import problem
from stream.errors import TooManyRejected
from stream.kafka import clients, topics
from stream.kafka.deadletters import PREFIX, DeadLetter
from stream.operate.status import caught_up
from stream.operate.verify import verify
from stream.records import PUBLISHED_HEADER, VECTOR_HEADER, VERSION_HEADER, encode

pytestmark = pytest.mark.servers


def good(n: int) -> tuple[bytes, bytes]:
    return f"good{n}".encode(), json.dumps(chunk(f"good{n}", f"text {n}")).encode()


def bad(key: str, **fields) -> tuple[bytes, bytes]:
    return key.encode(), json.dumps(chunk(key) | fields).encode()


BAD = {
    "not JSON": ((b"k1", b"{not json"), "not-json"),
    "empty": ((b"k2", b""), "not-json"),
    "not an object": ((b"k3", b'["a"]'), "schema"),
    "a missing field": ((b"k4", b'{"chunk_id": "k4", "text": "t"}'), "schema"),
    "a wrong field": (bad("k5", table_lines="no list"), "schema"),
    "an unknown field": (bad("k6", txt="typo"), "schema"),
    "empty text": (bad("k7", text=""), "schema"),
    "another key": ((b"k8", json.dumps(chunk("other")).encode()), "key"),
    "a control character": (bad("k9\n"), "schema"),
    "20 MB of text": (bad("k10", text="x" * 20_000_000), "too-large"),
    "invalid UTF-8": ((b"k11", b'{"chunk_id": "k11", "doc_id": "d", "text": "\xff\xfe"}'), "not-json"),
    "deep nesting": ((b"k12", b"[" * 100_000), "not-json"),
    "deep facets": (
        (b"k13", b'{"chunk_id":"k13","doc_id":"d","text":"t","facet_json":' + b'{"a":' * 900 + b"1" + b"}" * 901),
        "schema",
    ),
    "NaN": ((b"k14", b'{"chunk_id": "k14", "doc_id": "d", "text": "t", "metadata": {"n": NaN}}'), "not-json"),
    "an infinite number": (
        (b"k15", b'{"chunk_id": "k15", "doc_id": "d", "text": "t", "metadata": {"n": 1e400}}'),
        "not-json",
    ),
    "a tombstone with a broken key": ((b"\xff", None), "key"),
}


async def test_each_bad_record_alone_becomes_a_dead_letter_with_its_bytes_unchanged(flow, stores):
    records = [record for n, (one, _) in enumerate(BAD.values()) for record in (good(n), one)]
    await send(flow, [*records, good(len(BAD))])
    ports = free_ports(3)
    async with (
        Worker("embed", port=ports[0]),
        Worker("expand", port=ports[1]),
        Worker("index", port=ports[2]),
    ):
        await caught_up(flow)
    letters = await read(flow, topics.dead_letters(flow, "embed"))
    assert {record.key: record.value for record in letters} == dict(one for one, _ in BAD.values())
    for record in letters:
        letter = DeadLetter.of(record)
        name, reason = next((name, reason) for name, (one, reason) in BAD.items() if one[0] == record.key)
        assert (letter.reason, letter.topic, letter.attempts) == (reason, flow.topic, 1), name
        headers = {header: value.decode() for header, value in record.headers if header.startswith(PREFIX)}
        assert problem(headers, "dead-letter") is None
    report = await verify(flow, stores)
    assert report.differences == []
    assert (report.indexed, report.dead_lettered) == (len(BAD) + 1, len(BAD))


async def test_headers_of_any_kind_travel_with_the_record_and_do_no_harm(flow):
    headers = [("trace", b"1"), ("nothing", None), ("dlq.attempts", b"many"), ("version", b"9" * 5000)]
    async with clients.producer(flow) as producer:
        for key, value in (good(1), bad("bad", text=""), (b"gone", None)):
            await producer.send_and_wait(flow.topic, key=key, value=value, headers=headers)
    async with Worker("embed", port=free_ports(1)[0]):
        await caught_up(flow, ["embed"])
    letters = {r.key: r for r in await read(flow, topics.dead_letters(flow, "embed"))}
    assert {key: DeadLetter.of(letter).reason for key, letter in letters.items()} == {
        b"bad": "schema",
        b"gone": "version",
    }
    (passed,) = await read(flow, topics.source(flow, "expand"))
    assert passed.key == b"good1"
    (original,) = [record for record in await read(flow, flow.topic) if record.key == b"good1"]
    published = (PUBLISHED_HEADER, str(original.timestamp).encode())
    *passed_on, (name, _) = passed.headers
    assert passed_on == [*(header for header in headers if header[0] != "dlq.attempts"), published]
    assert name == VECTOR_HEADER


async def test_a_producer_whose_records_are_all_bad_leaves_few_letters_however_often_the_worker_starts(flow):
    """Otherwise a schema error fills the dead-letter queue with a copy of every record."""
    flood = {f"bad{n}".encode() for n in range(1000)}
    letters = topics.dead_letters(flow, "embed")
    few = {"STREAM_REJECT_SHARE": "0.9", "STREAM_REJECT_COUNT": "100"}
    await send(flow, [good(n) for n in range(100)])
    await send(flow, [(key, b"{not json") for key in flood])
    await send(flow, [good(n) for n in range(100, 200)])
    for _ in range(2):
        async with Worker("embed", port=free_ports(1)[0], **few) as worker:
            assert await worker.exit_code() == TooManyRejected.exit_code
        written = [DeadLetter.of(record) for record in await read(flow, letters)]
        assert len({(letter.partition, letter.offset) for letter in written}) == len(written)
        assert max(Counter(letter.partition for letter in written).values()) <= 90
    assert f"of 100 consecutive records of {flow.topic}/" in worker.log.read_text()
    async with Worker("embed", port=free_ports(1)[0], **few | {"STREAM_REJECT_SHARE": "1"}):
        await caught_up(flow, ["embed"])
    assert {record.key for record in await read(flow, letters)} == flood
    passed = {record.key for record in await read(flow, topics.source(flow, "expand"))}
    assert passed == {key for key, _ in map(good, range(200))}


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
async def test_a_record_that_was_compressed_into_the_topic_fits_its_dead_letter(flow, codec):
    huge = bad("huge", text="x" * 60_000_000)
    client = AIOKafkaProducer(
        bootstrap_servers=flow.kafka_servers, compression_type=codec, max_request_size=2**30, acks="all"
    )
    async with client:
        await client.send_and_wait(flow.topic, key=huge[0], value=huge[1])
    await send(flow, [good(1)])
    async with Worker("embed", port=free_ports(1)[0]):
        await caught_up(flow, ["embed"])
    (letter,) = await read(flow, topics.dead_letters(flow, "embed"))
    assert (letter.key, letter.value) == huge
    assert len(await read(flow, topics.source(flow, "expand"))) == 1


async def test_a_text_too_long_for_the_model_is_rejected_alone(flow):
    long = bad("long", text="word " * 40_000)
    await send(flow, [good(1), long, good(2)])
    async with Worker("embed", port=free_ports(1)[0]):
        await caught_up(flow, ["embed"])
    (letter,) = [DeadLetter.of(record) for record in await read(flow, topics.dead_letters(flow, "embed"))]
    assert (letter.record.key, letter.record.value) == long
    assert letter.reason == "refused-by-model"
    assert "32768 tokens" in letter.detail
    assert {r.key for r in await read(flow, topics.source(flow, "expand"))} == {b"good1", b"good2"}


async def test_what_the_index_stage_or_a_store_refuses_is_a_dead_letter_of_index(flow, stores):
    records = {
        "good": expanded("good"),
        "short": expanded("short", embedding_qwen=bytes(8)),
        "weight": expanded("weight", splade_terms={"x": 1e300}),
        "bare": chunk("bare"),
    }
    async with clients.producer(flow) as producer:
        for key, value in records.items():
            data, headers = encode(value)
            await producer.send_and_wait(topics.source(flow, "index"), key=key.encode(), value=data, headers=headers)
    async with Worker("index", port=free_ports(1)[0]):
        await caught_up(flow, ["index"])
    letters = [DeadLetter.of(record) for record in await read(flow, topics.dead_letters(flow, "index"))]
    assert {letter.record.key.decode(): letter.reason for letter in letters} == {
        "short": "embedding",
        "weight": "refused-by-opensearch",
        "bare": "schema",
    }
    assert list(await stores.opensearch.stored(list(records))) == ["good"]
    assert "good" in await stores.neo4j.stored(list(records))


async def test_tombstones_pass_every_stage_and_delete_in_both_stores(flow, stores):
    ports = free_ports(3)
    async with (
        Worker("embed", port=ports[0]),
        Worker("expand", port=ports[1]),
        Worker("index", port=ports[2]),
    ):
        await send(flow, [good(1), good(2)])
        await caught_up(flow)
        assert [await store.count() for store in stores.both] == [2, 2]
        await send(flow, [(b"good1", None)])
        await caught_up(flow)
    report = await verify(flow, stores)
    assert report.differences == []
    assert (report.indexed, report.deleted) == (1, 1)
    (passed,) = [r for r in await read(flow, topics.source(flow, "index")) if r.value is None]
    (original,) = [r for r in await read(flow, flow.topic) if r.value is None]
    published = str(original.timestamp).encode()
    assert dict(passed.headers) == {VERSION_HEADER: published, PUBLISHED_HEADER: published}
