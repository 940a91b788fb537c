"""If these fail, a replay leaves records out, brings old ones back, or changes what it sends again."""

import asyncio
import json
import signal
from dataclasses import replace

import orjson
import pytest
from ports import free_ports
from support import Worker, chunk, read, record, until
from typer.testing import CliRunner

from stream.cli import app
from stream.config import only
from stream.errors import ConfigurationError
from stream.kafka import clients, reader, topics
from stream.operate import copies
from stream.operate.replay import Range, plan, publish_again, reset
from stream.operate.status import caught_up, stages
from stream.ratelimit import RateLimiter
from stream.records import Decoder

OWN = [("traceparent", b"00-1"), ("nothing", None)]
DECODER = Decoder.of("chunk", only({}))
BEFORE = {"partition": 1, "offset": 7, "timestamp": 1000}


@pytest.mark.parametrize(
    ("wanted", "takes"),
    [
        (Range(), True),
        (Range(since=1000, until=1001), True),
        (Range(since=1001), False),
        (Range(until=1000), False),
        (Range(offsets=[(0, range(9)), (1, range(7, 8))]), True),
        (Range(offsets=[(0, range(9)), (1, range(7))]), False),
        (Range(keys=frozenset([b"c1", b"c2"])), True),
        (Range(keys=frozenset([b"c2"])), False),
        (Range(fields={"doc_id": "d1", "metadata.lang": "en", "version": "1"}), True),
        (Range(fields={"metadata.lang": "de"}), False),
        (Range(fields={"metadata.lang.deeper": "en"}), False),
        (Range(since=1000, keys=frozenset([b"c2"])), False),
    ],
)
def test_every_condition_must_hold(wanted, takes):
    one = replace(record(chunk(metadata={"lang": "en"})), **BEFORE)
    assert wanted.takes(one, DECODER) is takes


@pytest.mark.parametrize("value", [None, b"{", b"[]", b"7"])
def test_what_is_no_object_has_no_fields(value):
    assert Range().takes(record(value), DECODER)
    assert not Range(fields={"doc_id": "d1"}).takes(record(value), DECODER)


async def send(settings, key, value, **more):
    async with clients.producer(settings) as producer:
        return await producer.send_and_wait(settings.topic, key=key.encode(), value=value, **more)


def body(chunk_id, **fields):
    return orjson.dumps(chunk(chunk_id, **fields))


async def replayed(settings, wanted=Range(), **options):  # noqa: B008 - frozen
    planned = await plan(settings, "embed", wanted)
    return await publish_again(settings, "embed", planned, **options)


def plain(one):
    return one.partition, one.key, one.value, one.timestamp, list(one.headers)


@pytest.mark.servers
async def test_a_copy_has_the_bytes_and_the_place_of_its_record(flow):
    await send(flow, "a", body("a"), headers=OWN, timestamp_ms=1_700_000_000_000, partition=1)
    await send(flow, "b", b"{not json", timestamp_ms=1_700_000_000_001, partition=0)
    await send(flow, "c", None, headers=[("version", b"7")], partition=0)
    before = await read(flow, flow.topic)
    assert await replayed(flow) == 3
    after = await read(flow, flow.topic)
    assert sorted(map(plain, after), key=str) == sorted(map(plain, before * 2), key=str)


@pytest.mark.servers
async def test_a_record_whose_key_has_a_newer_one_stays(flow):
    """Otherwise Kafka keeps the copy of the old record instead of the newer record."""
    for value in (body("a", version=1), body("a", version=2), None):
        await send(flow, "a", value, partition=0)
    await send(flow, "b", body("b"), partition=0)
    planned = await plan(flow, "embed", Range(fields={"doc_id": "d1"}))
    assert (planned.places, planned.older) == ({(0, 3)}, 2)


@pytest.mark.servers
async def test_what_is_published_meanwhile_stays_the_newest(flow, monkeypatch):
    await send(flow, "a", body("a", version=1), partition=0)
    await send(flow, "b", body("b", version=1), partition=0)
    planned = await plan(flow, "embed", Range())
    await send(flow, "a", body("a", version=2), partition=0)
    newest, real = body("b", version=3), reader.read_to_end

    async def busy(settings, topic, since=None, **more):
        if since == planned.ends:  # while newer records are searched
            await send(flow, "b", body("b", version=2), partition=0)
            await send(flow, "b", newest, partition=0)
        async for one in real(settings, topic, since, **more):
            yield one

    monkeypatch.setattr(reader, "read_to_end", busy)
    assert await publish_again(flow, "embed", planned) == 2
    monkeypatch.undo()
    last = {one.key: one.value for one in await read(flow, flow.topic)}
    assert last == {b"a": body("a", version=2), b"b": newest}


@pytest.mark.servers
async def test_every_copy_waits_for_its_turn(flow, monkeypatch):
    turns = []

    class Counted(RateLimiter):
        async def acquire(self, count=1):
            turns.append((self._rate, count))

    monkeypatch.setattr(copies, "RateLimiter", Counted)
    for n in range(3):
        await send(flow, f"c{n}", body(f"c{n}"))
    await replayed(flow, rate=4)
    assert turns == [(4, 1)] * 3


@pytest.mark.servers
async def test_a_record_that_is_too_large_for_the_settings_is_named(flow):
    await send(flow, "a", body("a", text="x" * 5000))
    small = flow.model_copy(update={"max_record_bytes": 1000, "max_message_bytes": 2000})
    with pytest.raises(ConfigurationError, match="STREAM_MAX_MESSAGE_BYTES"):
        await replayed(small)


@pytest.mark.servers
async def test_a_group_is_set_back_only_while_no_worker_runs(flow):
    lines = [(f"c{n}", body(f"c{n}")) for n in range(20)]
    for key, value in lines:
        await send(flow, key, value)
    port, *_ = free_ports(1)
    async with Worker("embed", port=port) as worker:
        await caught_up(flow, ["embed"])
        with pytest.raises(ConfigurationError, match="workers of embed are running"):
            await asyncio.to_thread(stream, "reset", "embed", "--to", "earliest")
        assert await worker.end(signal.SIGTERM) == 0
    await left(flow)
    assert sum((await reset(flow, "embed", "earliest")).values()) == 0
    assert (await stages(flow))[0].lag == len(lines)
    async with Worker("embed", port=port):
        await caught_up(flow, ["embed"])
    assert len(await read(flow, topics.source(flow, "expand"))) == 2 * len(lines)


async def left(settings):
    """Waits until the group is empty: a static member stays in it until its session timeout."""
    async with clients.admin(settings) as admin:

        async def empty() -> bool:
            (answer,) = await admin.describe_consumer_groups([topics.group(settings, "embed")])
            return not answer.groups[0][5]

        await until(empty)


@pytest.mark.servers
async def test_a_group_is_set_to_a_time_or_to_the_end(flow):
    for n in range(4):
        await send(flow, f"c{n}", body(f"c{n}"), partition=0, timestamp_ms=1_700_000_000_000 + n)
    assert await reset(flow, "embed", 1_700_000_000_002) == {0: 2, 1: 0}
    assert await reset(flow, "embed", "latest") == {0: 4, 1: 0}
    assert await reset(flow, "embed", 1_900_000_000_000) == {0: 4, 1: 0}


def stream(*arguments):
    return CliRunner().invoke(app, ["replay", *arguments], catch_exceptions=False)


@pytest.mark.servers
async def test_the_command_says_first_what_it_would_do(flow):
    for n in range(3):
        await send(flow, f"c{n}", body(f"c{n}"), partition=0)
    chosen = ["publish", "embed", "--offsets", "0@0-1", "--doc-id", "d1"]
    would = await asyncio.to_thread(stream, *chosen, "--dry-run")
    assert would.stdout == f"would publish 2 records of {flow.topic} again\n"
    assert len(await read(flow, flow.topic)) == 3
    did = await asyncio.to_thread(stream, *chosen, "--json")
    assert json.loads(did.stdout) == {"dry_run": False, "records": 2, "older": 0}
    assert len(await read(flow, flow.topic)) == 5
    back = await asyncio.to_thread(stream, "reset", "embed", "--to", "earliest")
    assert back.stdout == "embed resumes at 0@0, 1@0\n"


@pytest.mark.parametrize("wrong", [["--offsets", "0"], ["--since", "soon"], ["--where", "lang"], ["--rate", "0"]])
def test_a_condition_that_cannot_be_read_is_told(wrong):
    ended = CliRunner().invoke(app, ["replay", "publish", "embed", *wrong])
    assert ended.exit_code == 2
    assert wrong[0].lstrip("-") in ended.stderr
