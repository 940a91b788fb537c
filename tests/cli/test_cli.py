"""The command line: if these fail, a command prints the wrong output or exits with the wrong code."""

import asyncio
import json
import os
import pty
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import processes
import pytest
from click.testing import Result
from ports import free_ports
from support import DIMENSIONS, chunk, expanded, read, send
from typer.testing import CliRunner

from stream import __version__
from stream.cli import app
from stream.cli.search import _lines
from stream.config import STAGES, Settings
from stream.kafka import clients, topics
from stream.kafka.deadletters import letter_headers
from stream.models.embeddings import EmbeddingClient
from stream.operate.publish import publish
from stream.records import Record, Rejected, Tombstone
from stream.stores.base import Put
from stream.vectors import unpack

pytestmark = pytest.mark.servers

CLOSED = "127.0.0.1:1"  # no process listens on this port
SECRETS = ("STREAM_NEO4J_PASSWORD", "STREAM_OPENSEARCH_PASSWORD", "STREAM_EMBED_API_KEY")
PLANTED = {  # servers without security ignore these
    "STREAM_OPENSEARCH_USER": "somebody",
    "STREAM_OPENSEARCH_PASSWORD": "planted-secret-opensearch",
    "STREAM_EMBED_API_KEY": "planted-secret-embed",
}


async def stream(*arguments: str, stdin: bytes = b"") -> Result:
    """Runs the command in this process. Exceptions other than an exit are raised."""
    return await asyncio.to_thread(CliRunner().invoke, app, arguments, stdin, catch_exceptions=False)


def process(*arguments: str | bytes, **variables: str) -> SimpleNamespace:
    """Runs the command as a process, so that errors become sentences. Asserts that it prints no secret."""
    environment = os.environ | PLANTED | variables
    ended = processes.run(*arguments, **PLANTED, **variables)
    for name in SECRETS:
        assert environment[name] not in ended.out + ended.err
    assert "Traceback" not in ended.err
    return ended


def lines(*chunks: object) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in chunks)


# publish


async def test_a_file_is_published_line_by_line_as_it_is(flow, tmp_path):
    content = b'{"chunk_id": "a",  "doc_id": "d", "text": "spaces stay"}\n\n  \n' + lines(chunk("b"))
    (tmp_path / "chunks.jsonl").write_bytes(content)
    result = await stream("publish", str(tmp_path / "chunks.jsonl"))
    assert (result.exit_code, result.stderr) == (0, "published 2 chunks\n")
    values = {r.key: r.value for r in await read(flow, flow.topic)}
    assert values == {b"a": content.splitlines()[0], b"b": lines(chunk("b")).strip()}


async def test_bad_lines_are_named_by_number_and_the_good_ones_are_in_the_topic(flow):
    stdin = lines(chunk("a")) + b"{not json\n\n" + lines(chunk("b", text=""), chunk("c"))
    result = await stream("publish", "-", stdin=stdin)
    assert result.exit_code == 1
    first, second, summary = result.stderr.splitlines()
    assert first.startswith("line 2: the record is not JSON")
    assert second.startswith("line 4: text")
    assert summary == "published 2 chunks, 2 bad lines"
    assert {r.key for r in await read(flow, flow.topic)} == {b"a", b"c"}


async def test_what_is_wrong_with_a_line_is_not_taken_for_markup(flow):
    result = await stream("publish", "-", stdin=lines(chunk("a") | {"[red]typo[/red]": 1}))
    assert "[red]typo[/red]" in result.stderr


async def test_nothing_at_all_is_published_without_complaint(flow):
    result = await stream("publish", "-")
    assert (result.exit_code, result.stderr) == (0, "published 0 chunks\n")


def test_a_file_is_validated_where_there_is_no_kafka(settings, tmp_path):
    (tmp_path / "chunks.jsonl").write_bytes(lines(chunk("a")) + b"{not json\n")
    ended = process("validate", str(tmp_path / "chunks.jsonl"), STREAM_KAFKA_SERVERS=CLOSED)
    assert (ended.code, ended.err) == (1, "")
    assert ended.out.splitlines()[0].startswith("line 2: the record is not JSON")
    assert ended.out.splitlines()[1] == "1 good chunks, 1 bad lines"
    ended = process("validate", str(tmp_path / "chunks.jsonl"), "--json", STREAM_KAFKA_SERVERS=CLOSED)
    found = json.loads(ended.out)
    assert (ended.code, found["good"], list(found["bad"])) == (1, 1, ["2"])
    (tmp_path / "chunks.jsonl").write_bytes(lines(chunk("a")))
    ended = process("validate", str(tmp_path / "chunks.jsonl"), STREAM_KAFKA_SERVERS=CLOSED)
    assert (ended.code, ended.out) == (0, "1 good chunks, 0 bad lines\n")


# topics, status


async def test_topics_are_created_once(settings):
    first, second = await stream("topics", "create"), await stream("topics", "create")
    assert first.exit_code == second.exit_code == 0
    for stage in STAGES:
        assert topics.source(settings, stage) in first.stdout
        assert topics.dead_letters(settings, stage) in first.stdout
    assert second.stdout == "all topics exist\n"


async def test_status_counts_what_lies_ahead_of_each_stage(flow, stores):
    await publish([lines(chunk("a")), lines(chunk("b"))], flow)
    text = (await stream("status")).stdout
    assert re.search(r"embed\D+2\D+2\D+0", text)
    assert "OpenSearch: 0 chunks" in text
    found = json.loads((await stream("status", "--json")).stdout)
    assert found["stages"] == {
        "embed": {"total": 2, "lag": 2, "dead_letters": 0},
        "expand": {"total": 0, "lag": 0, "dead_letters": 0},
        "index": {"total": 0, "lag": 0, "dead_letters": 0},
    }
    assert found["stores"].keys() == {"Neo4j", "OpenSearch"}


# verify


def put(chunk_id: str, text: str = "a text", version: int = 1) -> Put:
    value = expanded(chunk_id, text, version)
    return Put(value, unpack(value["embedding_qwen"]))


def line(chunk_id: str, version: int) -> tuple[bytes, bytes]:
    return chunk_id.encode(), json.dumps(chunk(chunk_id, "a text", version)).encode()


async def write(stores, *writes: Put | Tombstone) -> None:
    for store in stores.both:
        assert await store.write(writes) == {}


async def test_verify_says_yes_when_both_stores_have_what_the_topic_has(flow, stores):
    await publish([lines(chunk("a", "a text")), lines(chunk("b", "a text"))], flow)
    await send(flow, [(b"b", None)])
    await write(stores, put("a"))
    result = await stream("verify")
    assert result.exit_code == 0
    assert "2 published = 1 in Neo4j and OpenSearch + 1 deleted + 0 dead-lettered + 0 lost or wrong" in result.stdout
    report = json.loads((await stream("verify", "--json")).stdout)
    assert report == {
        "published": 2,
        "indexed": 1,
        "deleted": 1,
        "dead_lettered": 0,
        "rejected": 0,
        "on_their_way": 0,
        "ahead": 0,
        "accepted": 0,
        "different": 0,
        "versions_fall": 0,
        "differences": [],
        "ahead_chunks": [],
        "accepted_chunks": [],
        "falling_chunks": [],
        "clean": True,
    }


async def test_verify_names_every_chunk_that_is_lost_or_wrong(flow, stores):
    names = ("good", "missing", "text", "deleted")
    await publish([lines(chunk(name, "a text")) for name in names] + [lines(chunk("version", "a text", 3))], flow)
    await send(flow, [(b"deleted", None)])
    await write(stores, put("good"), put("version", version=2), put("text", "another"), put("deleted"))
    result = await stream("verify")
    assert result.exit_code == 1
    both = "Neo4j {0}, OpenSearch {0}"
    *differences, summary = result.stdout.splitlines()
    assert sorted(differences) == [
        f"deleted: {both.format('still has it, although it was deleted')}",
        f"missing: {both.format('does not have it')}",
        f"text: {both.format('has another text')}",
        f"version: {both.format('has version 2, the topic 3')}",
    ]
    assert summary.endswith("4 lost or wrong")
    report = json.loads((await stream("verify", "--json")).stdout)
    assert (report["clean"], report["different"], sorted(report["differences"])) == (False, 4, sorted(differences))


async def test_verify_says_what_to_do_about_stores_that_are_ahead_and_versions_that_fall(flow, stores):
    await send(flow, [line("ahead", 6), line("falls", 7), line("falls", 6)])
    await write(stores, put("ahead", version=9), put("falls", version=7))
    result = await stream("verify")
    assert result.exit_code == 0
    ahead, falls, summary, of_ahead, of_falls = result.stdout.splitlines()
    assert ahead == "ahead: Neo4j has version 9, the topic 6, OpenSearch has version 9, the topic 6"
    assert falls == "falls: its last record has version 6, an earlier one 7"
    assert summary.endswith("+ 0 dead-lettered + 1 ahead of the topic + 0 lost or wrong")
    assert of_ahead.endswith("Publish each again, with a higher version than the stores have.")
    assert of_falls.endswith("Publish each again, with a higher version than it ever had.")


async def test_verify_accepts_what_it_is_told_to_and_names_it(flow, stores):
    await send(flow, [line("refused", 1), line("lost", 1)])
    result = await stream("verify", "--accept", "refused")
    assert result.exit_code == 1
    assert "accepted: refused: Neo4j does not have it, OpenSearch does not have it" in result.stdout
    assert "0 dead-lettered + 1 accepted + 1 lost or wrong" in result.stdout
    assert (await stream("verify", "--accept", "refused", "--accept", "lost")).exit_code == 0


async def test_verify_notices_a_chunk_that_the_topic_does_not_know(flow, stores):
    await publish([lines(chunk("a", "a text"))], flow)
    await write(stores, put("a"), put("extra"))
    result = await stream("verify")
    assert result.exit_code == 1
    assert "Neo4j holds 1 chunks more than the topic knows" in result.stdout
    assert "OpenSearch holds 1 chunks more than the topic knows" in result.stdout


# search


@pytest.mark.parametrize("mode", ["lexical", "dense"])
async def test_search_finds_a_chunk_by_its_words(settings, stores, mode):
    texts = {"sockets": "listen on a socket", "parsers": "parse the arguments of a command"}
    async with EmbeddingClient(settings) as client:
        vectors = dict(zip(texts, await client.embed(list(texts.values())), strict=True))
        made = {"splade_terms": {}, "embedding_provenance": client.provenance}
    await write(stores, *(Put(expanded(name, text, **made), unpack(vectors[name])) for name, text in texts.items()))
    await stores.opensearch.count()
    result = await stream("search", "socket listen", "--mode", mode, "--json", "-k", "1")
    (hit,) = json.loads(result.stdout)["hits"]
    assert (hit["chunk_id"], hit["doc_id"], hit["text"]) == ("sockets", "d1", texts["sockets"])
    assert hit["score"] > 0


async def test_a_text_with_brackets_is_shown_as_it_is(settings, stores):
    await write(stores, put("a[/b]", "sockets [red]and[/] parsers [/b]"))
    await stores.opensearch.count()
    text = process("search", "sockets", "--mode", "bm25", COLUMNS="200").out
    assert "a[/b]" in text
    assert "sockets [red]and[/] parsers [/b]" in text


async def test_search_says_when_there_is_nothing(settings, stores):
    result = await stream("search", "nowhere", "--mode", "bm25")
    assert (result.exit_code, result.stdout) == (0, "nothing found\n")


async def test_a_long_query_is_searched_by_its_first_words(settings, stores):
    await write(stores, put("a", "sockets and ports"), put("b", "parsers"))
    await stores.opensearch.count()
    for words in (" ".join(f"word{n}" for n in range(1100)), "w " * 1100, "\u8a9e" * 1100):
        found = json.loads((await stream("search", f"sockets {words}", "--mode", "lexical", "--json")).stdout)
        assert [hit["chunk_id"] for hit in found["hits"]] == ["a"]


@pytest.mark.parametrize(("mode", "setting"), [("lexical", "STREAM_OPENSEARCH_ALIAS"), ("dense", "STREAM_NEO4J_INDEX")])
def test_a_search_before_there_is_an_index_says_what_makes_it(settings, mode, setting):
    ended = process("search", "words", "--mode", mode, **{setting: "made_by_nobody"})
    assert_one_sentence(ended, 78, "`stream worker index`, which creates it")
    assert setting in ended.err


# encode


async def test_a_line_ends_with_a_line_feed_and_with_nothing_else(settings, tmp_path):
    content = "a\u2028b\x0cc\x1cd\x1de\x1ef\x0bg\u2029h\x85i\n\ntwo\rstill two\r\nthree".encode()
    (tmp_path / "texts").write_bytes(content)
    piped, file = await stream("encode", "-", stdin=content), await stream("encode", str(tmp_path / "texts"))
    assert (piped.exit_code, piped.stdout.count("\n")) == (0, 4)
    assert file.stdout == piped.stdout


@pytest.mark.parametrize(
    ("text", "expected"), [("", []), ("\n", [""]), ("a", ["a"]), ("a\n", ["a"]), ("a\r\n\n", ["a", ""])]
)
def test_the_last_line_may_lack_its_end(text, expected):
    assert _lines(text) == expected


# terminal control characters


OBEYED = "\x1b]0;owned\x07 \x1b[31m \x9b31m \x85 \x7f \u202ered\u2066 \u2028"
NOT_PRINTED = {character for character in OBEYED if not character.isprintable()}


def assert_harmless(*printed: str) -> None:
    for text in printed:
        assert not NOT_PRINTED & set(text)


async def test_no_text_of_a_record_commands_the_terminal(flow, stores):
    key = f"k{OBEYED}".encode()
    await write(stores, put("a", f"sockets {OBEYED}"))
    await stores.opensearch.count()
    for mode in ("--json", "-k9"):
        shown = await stream("search", "sockets", "--mode", "bm25", mode)
        assert "owned" in shown.stdout
        assert_harmless(shown.stdout, shown.stderr)
    bad = lines(chunk("b") | {f"field{OBEYED}": 1})
    for command in (["publish", "-"], ["validate", "-"], ["validate", "-", "--json"]):
        shown = await stream(*command, stdin=bad)
        assert "owned" in shown.output
        assert_harmless(shown.stdout, shown.stderr)
    async with clients.producer(flow) as producer:
        record = Record(flow.topic, 0, 0, key, OBEYED.encode(), 1000, [(f"h{OBEYED}", OBEYED.encode())])
        headers = letter_headers(record, "embed", Rejected("schema", OBEYED))
        await producer.send_and_wait(topics.dead_letters(flow, "embed"), key=key, value=record.value, headers=headers)
    for command in (["ls"], ["ls", "--json"], ["show", "embed", "0@0"], ["show", "embed", "0@0", "--json"],
                    ["redrive", "--dry-run"], ["redrive", "--dry-run", "--json"], ["redrive", "--all"]):  # fmt: skip
        shown = await stream("dlq", *command)
        assert_harmless(shown.stdout, shown.stderr)


def test_raw_bytes_are_not_written_to_a_terminal(settings):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "stream", "dlq", "show", "embed", "0@0", "--raw"]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=subprocess.PIPE, check=False)
    os.close(ours)
    os.close(theirs)
    assert (ended.returncode, b"a pipe" in ended.stderr) == (2, True)


async def test_a_text_with_colons_is_no_emoji(settings, stores):
    await write(stores, put("a", "sockets :warning: parsers"))
    await stores.opensearch.count()
    assert ":warning:" in (await stream("search", "sockets", "--mode", "bm25")).stdout


# arguments that are not UTF-8


CAFE = b"caf\xe9"


@pytest.mark.parametrize(
    "arguments",
    [
        ["search"],
        ["search", "--mode", "dense"],
        ["delete", "--doc-id"],
        ["dlq", "ls", "--key"],
        ["dlq", "show", "embed"],
        ["dlq", "redrive", "--key"],
        ["replay", "publish", "embed", "--dry-run", "--key"],
        ["replay", "publish", "embed", "--dry-run", "--doc-id"],
        ["replay", "publish", "embed", "--dry-run", "--where"],
        ["replay", "publish", "embed", "--dry-run", "--since"],
        ["replay", "publish", "embed", "--dry-run", "--offsets"],
        ["worker"],
        ["--set"],
    ],
    ids=" ".join,
)
async def test_an_argument_that_is_not_utf8_is_a_wrong_command_line(settings, arguments):
    ended = await stream(*arguments, os.fsdecode(b"x=" + CAFE if arguments[-1] in ("--set", "--where") else CAFE))
    assert ended.exit_code == 2
    assert ended.stdout == ""


def test_a_file_whose_name_is_not_utf8_is_opened(settings, tmp_path):
    path = os.fsencode(tmp_path) + b"/" + CAFE
    ended = process("validate", path)
    assert_one_sentence(ended, 78, "No such file")
    Path(os.fsdecode(path)).write_bytes(lines(chunk("a")))
    assert process("validate", path).out == "1 good chunks, 0 bad lines\n"


# dlq


@pytest.mark.parametrize("command", [["dlq", "ls"], ["verify"]])
async def test_a_record_that_is_no_dead_letter_is_named_and_passed_over(flow, stores, command):
    async with clients.producer(flow) as producer:
        await producer.send_and_wait(topics.dead_letters(flow, "embed"), value=b"somebody else's")
    ended = process(*command)
    assert ended.code == 0
    assert f"{topics.dead_letters(flow, 'embed')}/0@0" in ended.err


# settings


@pytest.mark.parametrize("arguments", [["settings"], ["settings", "--markdown"]])
def test_settings_lists_every_setting_with_its_meaning(settings, arguments):
    text = process(*arguments, COLUMNS="300").out
    for name, field in Settings.model_fields.items():
        assert f"STREAM_{name.upper()}" in text
        assert field.description in text


async def test_set_goes_before_the_environment(settings):
    other = f"{settings.topic}-other"
    assert other in (await stream("--set", f"topic={other}", "topics", "create")).stdout


async def test_the_version_is_the_package_s():
    assert (await stream("--version")).stdout == f"{__version__}\n"


# errors


def assert_one_sentence(ended: SimpleNamespace, code: int, words: str) -> None:
    assert ended.code == code, ended.err
    (sentence,) = ended.err.splitlines()
    assert sentence.startswith("stream: ")
    assert words in sentence
    assert ended.out == ""


DOWN = {
    "Kafka": {"STREAM_KAFKA_SERVERS": CLOSED},
    "Neo4j": {"STREAM_NEO4J_URI": f"bolt://{CLOSED}"},
    "OpenSearch": {"STREAM_OPENSEARCH_URL": f"http://{CLOSED}"},
}


@pytest.mark.parametrize("server", DOWN)
@pytest.mark.parametrize("command", ["status", "verify"])
async def test_a_server_that_is_down_is_named(flow, server, command):
    await publish([lines(chunk("a"))], flow)
    assert_one_sentence(process(command, **DOWN[server]), 75, f"{server} ")


@pytest.mark.parametrize("arguments", [["topics", "create"], ["dlq", "ls"], ["publish", "-"], ["worker", "index"]])
def test_without_kafka_nothing_hangs(settings, arguments):
    ended = process(*arguments, **DOWN["Kafka"])
    assert ended.code == 75
    assert CLOSED in ended.err.splitlines()[-1]


def test_the_embedding_server_that_is_down_is_named(settings):
    ended = process("search", "words", "--mode", "dense", STREAM_EMBED_URL=f"http://{CLOSED}")
    assert_one_sentence(ended, 75, f"the embedding server at http://{CLOSED}")


@pytest.mark.parametrize("arguments", [["status"], ["verify"], ["dlq", "ls"], ["publish", "-"], ["worker", "embed"]])
def test_missing_topics_are_named_and_what_makes_them(settings, arguments):
    ended = process(*arguments)
    assert_one_sentence(ended, 78, settings.topic)
    assert "`stream topics create`" in ended.err


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("partitions=few", "partitions: "),
        ("partitions=0", "partitions: "),
        ("topic=a b", "topic: "),
        ("no_such=1", "no setting called no_such"),
        ("kafka_servers=localhost:port", "kafka"),
        ("neo4j_uri=nonsense", "neo4j"),
    ],
)
async def test_a_setting_that_does_not_fit_is_named(flow, assignment, words):
    assert_one_sentence(process("--set", assignment, "status"), 78, words)


def test_a_wrong_password_is_named_and_not_shown(flow):
    ended = process("status", STREAM_NEO4J_PASSWORD="planted-secret-neo4j")
    assert_one_sentence(ended, 78, "STREAM_NEO4J_PASSWORD")


def test_a_password_without_its_user_is_named(flow, monkeypatch):
    monkeypatch.delitem(PLANTED, "STREAM_OPENSEARCH_USER")
    assert_one_sentence(process("status"), 78, "opensearch_user")


def test_a_file_that_is_not_there_is_named(settings):
    assert_one_sentence(process("publish", "nowhere.jsonl"), 78, "nowhere.jsonl")


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["--set", "partitions", "status"], ["search", "x", "--mode", "x"], ["worker", "x"]]
)
def test_a_wrong_command_line_is_2(settings, arguments):
    assert process(*arguments).code == 2


def test_expand_refuses_to_start_without_a_gpu(flow):
    assert_one_sentence(process("worker", "expand", REQUIRE_GPU="1", CUDA_VISIBLE_DEVICES=""), 99, "nvidia-smi")


def test_expand_refuses_to_start_if_nvidia_smi_finds_no_gpu(flow, tmp_path):
    ended = process("worker", "expand", REQUIRE_GPU="1", CUDA_VISIBLE_DEVICES="", PATH=nvidia_smi(tmp_path, 9, SICK))
    assert_one_sentence(ended, 99, SICK)


SICK = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."


def nvidia_smi(folder: Path, code: int, said: str) -> str:
    """A PATH with an nvidia-smi that prints this and exits with this code."""
    program = folder / "nvidia-smi"
    program.write_text(f'#!/bin/sh\necho "{said}"\nexit {code}\n')
    program.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"STREAM_EMBED_URL": f"http://{CLOSED}"}, "does not answer"),
        ({"STREAM_EMBED_URL": f"http://{CLOSED},http://localhost:2"}, "localhost:2"),
        ({"STREAM_EMBED_MODEL": "another"}, "not another"),
        ({"STREAM_EMBED_DIMENSIONS": "8"}, f"{DIMENSIONS} numbers, not 8"),
    ],
    ids=["down", "both down", "wrong model", "wrong dimension"],
)
def test_embed_refuses_to_start_without_its_server(flow, wrong, words):
    assert_one_sentence(process("worker", "embed", REQUIRE_GPU="1", **wrong), 99, words)
    assert process("worker", "embed", REQUIRE_GPU="0", **wrong).code == 75


# doctor


async def test_the_doctor_looks_at_everything_and_changes_nothing(flow):
    ended = await stream("doctor")
    assert ended.exit_code == 0, ended.stdout
    found = [line.split(": ")[0].split(maxsplit=1) for line in ended.stdout.splitlines()]
    names = ("Python", f"embedding server {flow.embed_url}", "Kafka", "Neo4j", "OpenSearch")
    assert found == [["ok", name] for name in names]
    assert f"vector index {flow.neo4j_index}" in ended.stdout
    assert f"{flow.opensearch_alias} points to nothing yet" in ended.stdout


@pytest.mark.parametrize(
    ("wrong", "sick"),
    [
        (DOWN["Kafka"], "Kafka"),
        (DOWN["Neo4j"], "Neo4j"),
        (DOWN["OpenSearch"], "OpenSearch"),
        ({"STREAM_EMBED_MODEL": "another"}, "embedding server"),
        ({"STREAM_EMBED_DIMENSIONS": "8"}, "embedding server"),
        ({"STREAM_TOPIC": "missing"}, "Kafka"),
    ],
)
def test_the_doctor_names_what_is_sick_and_goes_on(flow, wrong, sick):
    ended = process("doctor", "--json", STREAM_NEO4J_INDEX="made_by_nobody", **wrong)
    findings = json.loads(ended.out)
    assert ended.code == 1
    assert len(findings) == 5
    (found,) = [finding for finding in findings if not finding["ok"]]
    assert found["check"].startswith(sick)
    assert re.search("start it|set STREAM_|create", found["said"])


def test_the_doctor_looks_for_a_gpu_where_one_is_required(flow, tmp_path):
    ended = process("doctor", REQUIRE_GPU="1", CUDA_VISIBLE_DEVICES="", PATH=nvidia_smi(tmp_path, 0, "NVIDIA H100, 1"))
    assert ended.code == 1
    assert "ok    nvidia-smi: NVIDIA H100, 1" in ended.out
    assert re.search("^error PyTorch: no CUDA GPU is available", ended.out, re.MULTILINE)


def test_a_web_port_that_is_taken_is_named(flow):
    with socket.create_server(("127.0.0.1", free_ports(1)[0])) as taken:
        port = str(taken.getsockname()[1])
        ended = process("worker", "embed", STREAM_WEB_PORT=port)
    assert_one_sentence(ended, 78, port)
    assert "STREAM_WEB_PORT" in ended.err


# Extras


WITHOUT_EXTRAS = """
import sys
sys.modules.update(dict.fromkeys(("supervisor", "matplotlib", "opentelemetry.sdk", "opentelemetry.exporter")))
from stream.cli import main
main()
"""


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--version"], 0, ""),
        (["bench", "--help"], 0, ""),
        (["local", "status"], 78, "stream: the local profile needs supervisor: pip install 'chunk-stream[local]'"),
        (["--set", "traces=1", "worker", "embed"], 78, "STREAM_TRACES needs more packages: pip install"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_extra_that_is_not_installed_is_missed_only_where_it_is_used(arguments, code, sentence, tmp_path):
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS, *arguments], check=False, capture_output=True, text=True, cwd=tmp_path
    )
    assert (ended.returncode, "Traceback" in ended.stderr) == (code, False), ended.stderr
    assert sentence in ended.stderr
