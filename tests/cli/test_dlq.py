"""`stream dlq`: if these fail, a rejected record cannot be found, is redriven with changes, or is lost."""

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from types import SimpleNamespace

import processes
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from click.testing import Result
from ports import free_ports
from support import Worker, chunk, read, send
from typer.testing import CliRunner

from stream.cli import app
from stream.config import Settings, StageName
from stream.kafka import clients, deadletters, topics
from stream.kafka.deadletters import ATTEMPTS_HEADER, LEFT_OUT_HEADER, DeadLetter, letter_headers, without_letter
from stream.operate import redrive as redriving
from stream.operate.copies import Copies
from stream.operate.status import caught_up
from stream.operate.verify import verify
from stream.records import Headers, Reason, Record, Rejected, header, sha256
from stream.stores.base import Stored

pytestmark = pytest.mark.servers

BROKEN = b"{not json \xff\x00"
OWN: Headers = [("traceparent", b"00-1"), ("nothing", None), ("version", b"7")]


async def stream(*arguments: str) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, app, ["dlq", *arguments], catch_exceptions=False)


async def answer(*arguments: str) -> object:
    return json.loads((await stream(*arguments, "--json")).stdout)


async def keys(*arguments: str) -> list[str]:
    return [letter["key"] for letter in await answer("ls", *arguments)]


async def reject(
    settings: Settings,
    key: str,
    value: bytes | None = BROKEN,
    *,
    stage: StageName = "embed",
    reason: Reason = "not-json",
    at: int | None = None,
    attempts: int = 1,
    more: Headers = (),
) -> Record:
    """Publishes a record to the stage's topic, and its dead letter as the stage would. Returns the record."""
    before = [(ATTEMPTS_HEADER, str(attempts - 1).encode())] if attempts > 1 else []
    async with clients.producer(settings) as producer:
        source = topics.source(settings, stage)
        sent = await producer.send_and_wait(source, key=key.encode(), value=value, headers=[*OWN, *before])
        original = Record(source, sent.partition, sent.offset, key.encode(), value, sent.timestamp, (*OWN, *before))
        headers = letter_headers(original, stage, Rejected(reason, f"wrong [b]{key}[/b]"))
        if at is not None:
            headers = [(name, str(at).encode() if name == "dlq.at" else content) for name, content in headers]
        await producer.send_and_wait(
            topics.dead_letters(settings, stage), key=original.key, value=value, headers=[*headers, *more]
        )
    return original


async def letters(settings: Settings, stage: StageName = "embed") -> list[DeadLetter]:
    return [letter async for letter in deadletters.read(settings, stage)]


def iso(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat()


@pytest.fixture
async def rejected(flow: Settings) -> Settings:
    """Three dead letters of embed, a second apart, and one of index."""
    for n, reason in enumerate(("not-json", "schema", "not-json")):
        await reject(flow, f"embed{n}", reason=reason, at=1_000_000 + n * 1000)
    await reject(flow, "index0", stage="index")
    return flow


# ls, show


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        ([], ["embed0", "embed1", "embed2", "index0"]),
        (["--stage", "embed"], ["embed0", "embed1", "embed2"]),
        (["--stage", "expand"], []),
        (["--limit", "1"], ["embed2", "index0"]),
        (["--reason", "schema"], ["embed1"]),
        (["--key", "embed1"], ["embed1"]),
        (["--key", "embed"], []),
        (["--since", "2h"], ["index0"]),
        (["--until", "2h"], ["embed0", "embed1", "embed2"]),
        (["--since", iso(1_001_000), "--until", iso(1_002_000)], ["embed1"]),
        (["--since", iso(1_001_000).removesuffix("+00:00"), "--stage", "embed"], ["embed1", "embed2"]),
    ],
)
async def test_letters_are_listed_that_a_filter_takes(rejected, filters, wanted):
    assert await keys(*filters) == wanted


async def test_a_letter_says_where_it_came_from_and_why(rejected):
    (letter,) = await answer("ls", "--stage", "index")
    (read_back,) = await letters(rejected, "index")
    assert letter == {
        "at": iso(read_back.at // 1000 * 1000),
        "stage": "index",
        "place": "0@0",
        "from": f"{read_back.topic}/{read_back.partition}@{read_back.offset}",
        "key": "index0",
        "reason": "not-json",
        "detail": "wrong [b]index0[/b]",
        "attempts": "1",
        "bytes": str(len(b"index0" + BROKEN)),
        "redriven": None,
    }
    shown = (await stream("show", "index", "0@0")).stdout
    assert all(str(value) in shown for value in letter.values() if value)


async def test_an_empty_list_says_so(flow):
    assert (await stream("ls")).stdout == "no dead letters\n"


@pytest.mark.parametrize("arguments", [["--since", "yesterday"], ["--until", "2x"], ["--reason", "bad luck"]])
async def test_a_filter_that_makes_no_sense_is_a_wrong_command_line(flow, arguments):
    assert (await stream("ls", *arguments)).exit_code == 2


@pytest.mark.parametrize("which", ["0@1", "embed1"])
async def test_a_letter_is_shown_by_place_or_key_with_its_bytes_and_all_headers(rejected, which):
    result = await stream("show", "embed", which, "--raw")
    assert result.stdout_bytes == BROKEN
    shown = await answer("show", "embed", which)
    assert {one["name"]: one["value"] for one in shown["headers"]}["traceparent"] == "00-1"
    assert shown["key"] == "embed1"


async def test_a_value_is_shown_readable_and_no_larger_than_the_screen(flow):
    await reject(flow, "big", json.dumps({"text": "x" * 5000, "lines": list(range(500))}).encode(), reason="schema")
    await reject(flow, "escape", b"\x1b[2J")
    await reject(flow, "prefix", bytes(5) + b'{"text": "in the Confluent wire format"}', reason="schema")
    big = await stream("show", "embed", "big")
    assert '  "text": "xxx' in big.stdout
    assert len(big.stdout) < 5000
    assert "--raw" in big.stderr
    assert "\x1b" not in (await stream("show", "embed", "escape")).stdout
    assert '\n  "text": "in the Confluent wire format"\n' in (await stream("show", "embed", "prefix")).stdout


# redrive


async def test_a_letter_goes_back_as_it_was_and_only_once(flow):
    original = await reject(flow, "a")
    assert (await stream("redrive")).exit_code == 0
    _, copy = await read(flow, flow.topic)
    assert (copy.key, copy.value, copy.partition) == (original.key, original.value, original.partition)
    assert copy.timestamp == original.timestamp
    assert without_letter(copy.headers) == list(OWN)
    assert [name for name, _ in copy.headers if name.startswith("dlq.")] == [ATTEMPTS_HEADER]
    assert await keys() == []
    assert await keys("--all") == ["a"]
    assert (await answer("redrive"))["redriven"] == []
    assert len(await read(flow, flow.topic)) == 2


async def test_a_second_rejection_counts_on_with_the_bytes_unchanged(flow, stores):
    await send(flow, [(b"bad", BROKEN)])
    async with Worker("embed", port=free_ports(1)[0]):
        await caught_up(flow, ["embed"])
        assert (await stream("redrive", "--stage", "embed")).exit_code == 0
        await caught_up(flow, ["embed"])
    first, second = await letters(flow)
    assert (first.attempts, second.attempts) == (1, 2)
    assert first.redriven
    assert second.redriven is None
    assert second.record.value == BROKEN
    report = await verify(flow, stores)
    assert (report.published, report.dead_lettered, report.different) == (1, 1, 0)


async def test_a_dry_run_says_what_would_go_and_changes_nothing(rejected):
    before = [await read(rejected, name) for name in (rejected.topic, topics.dead_letters(rejected, "embed"))]
    told = await answer("redrive", "--dry-run", "--stage", "embed", "--limit", "2")
    assert [letter["key"] for letter in told["redriven"]] == ["embed0", "embed1"]
    after = [await read(rejected, name) for name in (rejected.topic, topics.dead_letters(rejected, "embed"))]
    assert before == after


async def test_only_what_a_filter_takes_is_redriven(rejected):
    assert (await stream("redrive", "--reason", "schema")).exit_code == 0
    assert await keys() == ["embed0", "embed2", "index0"]
    assert (await stream("redrive", "--stage", "embed", "--limit", "1")).exit_code == 0
    assert await keys() == ["embed2", "index0"]


async def test_letters_that_must_not_go_stay_and_are_named(flow):
    await reject(flow, "tired", attempts=flow.dlq_max_attempts)
    await reject(flow, "hollow", None, more=[(LEFT_OUT_HEADER, b"1000")])
    await reject(flow, "overtaken", reason="schema")
    await send(flow, [(b"overtaken", json.dumps(chunk("overtaken")).encode())])
    before = len(await read(flow, flow.topic))
    result = await stream("redrive")
    assert result.exit_code == 1
    named = [line.split()[2] for line in result.stderr.splitlines()]
    assert named == ["tired", "hollow", "overtaken"]
    assert len(await read(flow, flow.topic)) == before
    assert await keys() == named
    told = await answer("redrive", "--all", "--key", "overtaken")
    assert [letter["key"] for letter in told["redriven"]] == ["overtaken"]


async def test_one_more_attempt_is_a_matter_of_the_setting(flow, monkeypatch):
    await reject(flow, "tired", attempts=flow.dlq_max_attempts)
    monkeypatch.setenv("STREAM_DLQ_MAX_ATTEMPTS", str(flow.dlq_max_attempts + 1))
    assert (await stream("redrive")).exit_code == 0
    *_, copy = await read(flow, flow.topic)
    assert header(copy.headers, ATTEMPTS_HEADER) == str(flow.dlq_max_attempts).encode()


async def test_a_letter_of_another_stage_goes_to_the_topic_that_it_reads(flow):
    await reject(flow, "i", stage="index")
    assert (await stream("redrive", "--stage", "index")).exit_code == 0
    assert [r.key for r in await read(flow, topics.source(flow, "index"))] == [b"i", b"i"]
    assert await read(flow, flow.topic) == []


# purge


async def test_purge_deletes_up_to_a_time_or_place_and_says_how_many(rejected):
    dry = await answer("purge", "--stage", "embed", "--until", iso(1_001_000), "--dry-run")
    assert (dry["letters"], dry["never_redriven"]) == (1, 1)
    assert len(await keys("--stage", "embed")) == 3
    await answer("purge", "--stage", "embed", "--until", iso(1_001_000), "--yes")
    assert await keys("--stage", "embed") == ["embed1", "embed2"]
    await answer("purge", "--stage", "embed", "--before", "0@2", "--yes")
    assert await keys() == ["embed2", "index0"]
    await stream("redrive", "--stage", "embed")
    rest = await answer("purge", "--stage", "embed", "--yes")
    assert (rest["letters"], rest["never_redriven"]) == (1, 0)
    assert await read(rejected, topics.dead_letters(rejected, "embed")) == []
    assert await keys() == ["index0"]


async def test_purge_refuses_to_ask_without_a_terminal(rejected):
    assert (await stream("purge", "--stage", "embed")).exit_code == 2
    assert len(await keys("--stage", "embed")) == 3


@pytest.mark.parametrize(("said", "left"), [(b"n\n", 3), (b"y\n", 0)])
async def test_purge_asks_on_a_terminal(rejected, said, left):
    ours, theirs = pty.openpty()
    os.write(ours, said)
    command = [sys.executable, "-m", "stream", "dlq", "purge", "--stage", "embed"]
    ended = await asyncio.to_thread(subprocess.run, command, stdin=theirs, capture_output=True, check=False)
    os.close(ours)
    os.close(theirs)
    assert b"Delete 3 dead letters of embed" in ended.stderr
    assert ended.returncode == (1 if left else 0)
    assert len(await keys("--stage", "embed")) == left


# Interrupted, repeated and impossible redrives


async def faulty(fault: str, *arguments: str) -> SimpleNamespace:
    """The command line as a process that meets a fault: its `code`, `out` and `err`."""
    script = str(Path(__file__).parent / "faulty_dlq.py")
    return await asyncio.to_thread(processes.run, fault, "dlq", *arguments, script=script)


async def copies(settings: Settings, original: Record) -> list[Record]:
    """The copies of a record. Asserts that each has the record's bytes, timestamp, partition and headers."""
    found = [r for r in await read(settings, original.topic) if r.key == original.key and r.offset != original.offset]
    for copy in found:
        assert (copy.value, copy.partition, copy.timestamp) == (original.value, original.partition, original.timestamp)
        assert without_letter(copy.headers) == without_letter(original.headers)
    return found


async def test_a_redrive_killed_before_a_marker_is_run_again_and_sends_nothing_twice(flow):
    originals = [await reject(flow, key) for key in ("a", "b", "c")]
    assert (await faulty("killed_before_the_second_marker", "redrive")).code == -signal.SIGKILL
    assert [len(await copies(flow, original)) for original in originals] == [1, 1, 1]
    assert await keys() == ["b", "c"]
    assert (await stream("redrive")).exit_code == 0
    assert [len(await copies(flow, original)) for original in originals] == [1, 1, 1]
    assert await keys() == []


def newer(key: str, version: int = 7) -> bytes:
    return json.dumps(chunk(key, version=version)).encode()


async def last(settings: Settings) -> dict[bytes | None, bytes | None]:
    """The value of each key that compaction would keep."""
    found: dict[bytes | None, tuple[int, bytes | None]] = {}
    for one in await read(settings, settings.topic):
        found[one.key] = max(found.get(one.key, (-1, None)), (one.offset, one.value), key=lambda at: at[0])
    return {key: value for key, (_, value) in found.items()}


async def test_what_is_published_while_letters_go_stays_the_newest(flow, monkeypatch):
    """A producer publishes between plan and copy, and between copies, also a tombstone, in both partitions."""
    originals = [await reject(flow, key) for key in ("a", "b", "c", "d", "e")]
    assert {original.partition for original in originals} == {0, 1}
    planned = await redriving.plan(flow, "embed", deadletters.Filter())
    await send(flow, [(b"a", newer("a", 6)), (b"a", newer("a"))])
    real = AIOKafkaProducer.send

    async def busy(producer, topic, value=None, key=None, *more, **record):
        """Another producer publishes b and c just before their copies, and d just after its copy."""
        copying = topic == flow.topic and value == BROKEN
        if copying and key in (b"b", b"c"):
            await send_by_another(real, flow, key, newer("b") if key == b"b" else None)
        answer = await real(producer, topic, value, key, *more, **record)
        if copying and key == b"d":
            await answer
            await send_by_another(real, flow, b"d", newer("d"))
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(AIOKafkaProducer, "send", busy)
        assert len(await redriving.redrive(flow, "embed", planned)) == 5
    assert await last(flow) == {b"a": newer("a"), b"b": newer("b"), b"c": None, b"d": newer("d"), b"e": BROKEN}
    assert [len(await copies(flow, original)) for original in originals if original.key == b"e"] == [1]
    assert await keys() == []


async def send_by_another(send, settings, key, value):
    async with clients.producer(settings) as producer:
        await (await send(producer, settings.topic, key=key, value=value))


async def test_a_redrive_killed_behind_a_newer_record_is_run_again_and_the_record_is_the_newest(flow):
    original = await reject(flow, "a")
    planned = await redriving.plan(flow, "embed", deadletters.Filter())
    await send(flow, [(b"a", newer("a"))])
    async with clients.letter_producer(flow) as producer:
        copying = Copies(flow, producer, flow.topic)
        (letter,) = await letters(flow)
        await copying.send(redriving._original(flow, "embed", letter))
        await copying.acknowledged()
    assert await last(flow) == {b"a": BROKEN}
    assert planned[0].stays is None
    assert (await stream("redrive")).exit_code == 0
    assert await last(flow) == {b"a": newer("a")}
    assert await keys() == []
    assert original.key == b"a"


async def test_letters_that_are_sent_although_their_key_has_a_newer_record_do_not_take_its_place(flow):
    for key in ("a", "b"):
        await reject(flow, key)
    await send(flow, [(b"a", newer("a")), (b"b", None)])
    told = await answer("redrive", "--all")
    assert [letter["key"] for letter in told["redriven"]] == ["a", "b"]
    assert await last(flow) == {b"a": newer("a"), b"b": None}


async def test_two_concurrent_redrives_do_not_replace_a_newer_record(flow, monkeypatch):
    await reject(flow, "a")
    plans = [await redriving.plan(flow, "embed", deadletters.Filter()) for _ in range(2)]
    await send(flow, [(b"a", newer("a"))])
    both, real = asyncio.Barrier(2), Copies.restore

    async def restore(self, since, *more):
        await both.wait()
        return await real(self, since, *more)

    monkeypatch.setattr(Copies, "restore", restore)
    await asyncio.gather(*(redriving.redrive(flow, "embed", plan) for plan in plans))
    assert await last(flow) == {b"a": newer("a")}


async def test_a_redrive_that_is_interrupted_says_so_and_goes_on_where_it_was(flow):
    originals = [await reject(flow, key) for key in ("a", "b", "c")]
    ended = await faulty("interrupted_before_the_second_marker", "redrive")
    assert (ended.code, ended.out) == (130, "")
    assert ended.err == "stream: interrupted: finished work is kept; run the command again to do the rest\n"
    assert await keys() == ["c"]
    assert (await stream("redrive")).exit_code == 0
    assert [len(await copies(flow, original)) for original in originals] == [1, 1, 1]
    assert await keys() == []


async def test_a_purge_that_is_interrupted_says_so_and_deletes_all_that_it_named_or_nothing(rejected):
    ended = await faulty("interrupted_while_deleting", "purge", "--stage", "embed", "--yes")
    assert (ended.code, ended.out) == (130, "")
    assert ended.err == "stream: interrupted: finished work is kept; run the command again to do the rest\n"
    assert await keys("--stage", "embed") in (["embed0", "embed1", "embed2"], [])
    assert await keys("--stage", "index") == ["index0"]
    assert (await stream("purge", "--stage", "embed", "--yes")).exit_code == 0
    assert await keys() == ["index0"]


async def test_a_letter_sent_twice_is_the_same_bytes_and_the_stores_are_right(flow, stores):
    """Two concurrent redrives plan the same letters. So does `--all` after a redrive that was killed."""
    text = json.dumps({"chunk_id": "a", "doc_id": "d", "text": "a text about sockets"}).encode()
    original = await reject(flow, "a", text, reason="refused-by-model")
    wanted = deadletters.Filter()
    plans = [await redriving.plan(flow, "embed", wanted) for _ in range(2)]
    await asyncio.gather(*(redriving.redrive(flow, "embed", plan) for plan in plans))
    assert await keys() == []
    assert len(await copies(flow, original)) == 2
    assert (await stream("redrive", "--all")).exit_code == 0
    assert len(await copies(flow, original)) == 3
    ports = free_ports(3)
    async with Worker("embed", port=ports[0]), Worker("expand", port=ports[1]), Worker("index", port=ports[2]):
        await caught_up(flow)
    report = await verify(flow, stores)
    assert (report.published, report.indexed, report.different) == (1, 1, 0)
    assert await stores.neo4j.stored(["a"]) == {"a": Stored(original.timestamp, sha256("a text about sockets"), True)}


@pytest.mark.parametrize("value", [BROKEN, None])
async def test_a_letter_without_a_key_is_listed_and_shown_but_stays(flow, value):
    topic = topics.dead_letters(flow, "embed")
    original = Record(flow.topic, 1, 7, None, value, 1000, OWN)
    async with clients.letter_producer(flow) as producer:
        headers = letter_headers(original, "embed", Rejected("key", "the record's key must be its chunk_id"))
        await clients.send_letter(producer, topic, None, value, headers)
    (letter,) = await answer("ls")
    assert (letter["key"], letter["from"]) == ("", f"{flow.topic}/1@7")
    assert (await stream("show", "embed", "0@0", "--raw")).stdout_bytes == (value or b"")
    assert "the record's key must be" in (await stream("show", "embed", "0@0")).stdout
    for arguments in ([], ["--all"]):
        result = await stream("redrive", *arguments)
        assert result.exit_code == 1
        assert "it has no key, and its topic is compacted" in result.stderr
    assert await read(flow, flow.topic) == []
    assert await keys() == [""]


async def test_a_copy_that_kafka_finds_too_large_is_not_sent_and_the_others_are(flow, monkeypatch):
    """The topic's max.message.bytes was lowered after the record was published."""
    monkeypatch.setenv("STREAM_MAX_MESSAGE_BYTES", str(2**20))
    large = Random(0).randbytes(2**20 + 1000)
    original = Record(flow.topic, 0, 1, b"large", large, 1000, OWN)
    async with clients.letter_producer(flow) as producer:
        headers = letter_headers(original, "embed", Rejected("not-json", "wrong"))
        await clients.send_letter(producer, topics.dead_letters(flow, "embed"), original.key, large, headers)
    neighbour = await reject(flow, "small")
    await limit_to(flow, flow.topic, 2**20)
    result = await stream("redrive")
    assert result.exit_code == 1
    assert result.stderr.strip() == f"embed 0@0 large is not redriven: it is larger than the topic {flow.topic} accepts"
    assert result.stdout.strip() == "redrove 1 dead letters, 1 not redriven"
    assert len(await copies(flow, neighbour)) == 1
    assert await keys() == ["large"]


async def limit_to(settings: Settings, topic: str, size: int) -> None:
    """Sets the topic's max.message.bytes."""
    configs = {"cleanup.policy": "compact", "max.message.bytes": str(size)}  # other options get their defaults
    async with clients.admin(settings) as admin:
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs)])
