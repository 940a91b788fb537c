"""If these fail, a language model gets answers that break its client, cannot read on, or reads what it may not see."""

import json
import os
import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from conftest import ROOT, free_ports, isolated
from hypothesis import given
from hypothesis import strategies as st
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult
from processes import Process, run
from searchable import Encoder, searchable
from support import LOGS, until
from typer.testing import CliRunner

from stream import config
from stream.cli import app
from stream.config import Settings
from stream.errors import ConfigurationError, DeadlineExceeded, InvalidRequest, Outage, Refused
from stream.models import splade
from stream.search import cursor
from stream.search.answer import Answer, Hit, Snippet
from stream.search.filters import FORMS, Equal
from stream.search.request import LEGS, MOST_HITS, Request, request
from stream.serve.access import EVERYONE, Key, Keys, hashed
from stream.serve.app import served
from stream.serve.mcp import server
from stream.serve.service import Service, open_service
from stream.serve.tools import DEFAULT_TOKENS, FILTER, LEAST_TOKENS, MOST_TOKENS, tokens
from stream.stores.base import Shown

SECRET = "a text that nobody else needs to see"
QUERY = "a socket and a thread"
MODES = tuple(LEGS)


class Fake:
    """A searcher of these chunks: every request finds all of them, in this order."""

    def __init__(self, *chunks: Shown, error: Exception | None = None, missing: dict[Any, str] | None = None) -> None:
        self.chunks = chunks
        self.error = error
        self.missing = missing or {}

    async def warm(self, legs: Any) -> None: ...

    async def search(self, asked: Request) -> Answer:
        if self.error:
            raise self.error
        start = cursor.decode(asked.cursor, asked, 1) if asked.cursor else 0
        end = start + asked.k
        found = [
            Hit(one.chunk_id, one.doc_id, one.version, 1.5, {}, one.text, Snippet(one.text[:240], []), one.metadata)
            for one in self.chunks[start:end]
        ]
        after = cursor.encode(asked, end, 1) if end < len(self.chunks) else None
        return Answer(found, 1, start, len(self.chunks), after, self.missing, [])

    async def chunk(self, chunk_id: str) -> Shown | None:
        if self.error:
            raise self.error
        return next((one for one in self.chunks if one.chunk_id == chunk_id), None)


def client(searcher: Any) -> Client:
    """The SDK's client, connected in memory."""
    return Client(server(searcher, lambda _: EVERYONE))


def chunk(n: int = 0, text: str = "a text about sockets", metadata: Any = None, chunk_id: str | None = None) -> Shown:
    return Shown(chunk_id or f"c{n}", f"d{n}", 1, text, metadata, None)


def answer(result: CallToolResult) -> dict[str, Any]:
    """The structured content, which the text repeats."""
    assert not result.is_error, result.content
    assert json.loads(result.content[0].text) == result.structured_content
    return result.structured_content


def sentence(result: CallToolResult) -> str:
    """The text of an error, which is one sentence."""
    assert result.is_error
    (block,) = result.content
    assert "\n" not in block.text
    assert "Traceback" not in block.text
    return block.text


# The size of answers

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300)
fields = st.dictionaries(
    st.text("abc", min_size=1, max_size=9), texts | st.integers(0, 2**53) | st.lists(texts, max_size=2)
)
sizes = st.integers(LEAST_TOKENS, LEAST_TOKENS + 500)


@given(st.lists(st.tuples(texts, st.none() | fields), max_size=30), st.integers(1, 12), sizes)
async def test_no_answer_of_search_is_larger_than_wanted_and_its_pages_miss_nothing(contents, k, most):
    chunks = [chunk(n, text, metadata) for n, (text, metadata) in enumerate(contents)]
    found, after = [], None
    async with client(Fake(*chunks, missing={"dense": "é" * 500, "splade": "é" * 500})) as model:
        while True:
            result = await model.call_tool("search", {"query": "a", "k": k, "max_tokens": most, "cursor": after})
            page = answer(result)
            assert tokens(result) <= most
            assert page["truncated"] == (len(page["results"]) < min(k, len(chunks) - len(found)))
            for one in page["results"]:
                stored = chunks[len(found)]
                found.append(one["id"])
                assert one["id"] == stored.chunk_id
                assert (one["metadata"], one["left_out"]) in ((stored.metadata, []), (None, ["metadata"]))
            if (after := page["cursor"]) is None:
                break
    assert found == [one.chunk_id for one in chunks]


@given(texts, st.integers(1, 40), st.none() | fields, sizes)
async def test_the_parts_of_a_text_are_no_larger_than_wanted_and_together_the_whole_text(text, times, metadata, most):
    whole = text * times
    parts, offset = [], 0
    async with client(Fake(chunk(text=whole, metadata=metadata))) as model:
        while offset is not None:
            result = await model.call_tool("fetch", {"id": "c0", "offset": offset, "max_tokens": most})
            part = answer(result)
            assert tokens(result) <= most
            assert (part["offset"], part["length"]) == (len("".join(parts)), len(whole))
            assert (part["metadata"], part["left_out"]) in ((metadata, []), (None, ["metadata"]))
            assert part["truncated"] == (part["next_offset"] is not None)
            parts.append(part["text"])
            offset = part["next_offset"]
    assert "".join(parts) == whole


async def test_a_long_text_and_a_thousand_results_stay_within_the_default():
    chunks = [chunk(n, "words and words " * 10_000) for n in range(MOST_HITS)]
    async with client(Fake(*chunks)) as model:
        found = await model.call_tool("search", {"query": "a", "k": 100})
        fetched = await model.call_tool("fetch", {"id": "c0"})
    for result in (found, fetched):
        assert 0.9 * DEFAULT_TOKENS < tokens(result) <= DEFAULT_TOKENS
        assert answer(result)["truncated"]


@pytest.mark.parametrize("tool", ["search", "fetch"])
async def test_an_id_that_does_not_fit_is_an_error_that_says_how_many_tokens_suffice(tool):
    long = chunk(chunk_id="😀" * 512)
    arguments = {"query": "a"} if tool == "search" else {"id": long.chunk_id}
    async with client(Fake(long)) as model:
        said = sentence(await model.call_tool(tool, {**arguments, "max_tokens": LEAST_TOKENS}))
        enough = int(re.search(r"max_tokens (\d+)", said)[1])
        assert answer(await model.call_tool(tool, {**arguments, "max_tokens": enough}))


# Errors


@pytest.mark.parametrize("tool", ["search", "fetch"])
@pytest.mark.parametrize("kind", [InvalidRequest, Refused, Outage, DeadlineExceeded, ConfigurationError])
async def test_an_error_of_the_library_is_its_sentence(tool, kind):
    async with client(Fake(error=kind("OpenSearch does not answer: start it"))) as model:
        result = await model.call_tool(tool, {"query": "a"} if tool == "search" else {"id": "a"})
    assert sentence(result) == "OpenSearch does not answer: start it"


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_fault_shows_nothing_of_itself(mode):
    async with Client(server(Fake(error=ZeroDivisionError(SECRET)), lambda _: EVERYONE), mode=mode) as model:
        result = await model.call_tool("search", {"query": "a"})
    assert SECRET not in sentence(result)


@pytest.mark.parametrize(
    ("tool", "arguments", "words"),
    [
        ("search", {}, "query"),
        ("search", {"query": " "}, "query"),
        ("search", {"query": "a", "mode": "best"}, "mode"),
        ("search", {"query": "a", "k": 0}, "k"),
        ("search", {"query": "a", "limit": 3}, "limit"),
        ("search", {"query": "a", "max_tokens": MOST_TOKENS + 1}, "max_tokens"),
        ("search", {"query": "a", "filter": {"field": "text", "equal": "a"}}, "cannot be filtered"),
        ("search", {"query": "a", "filter": "metadata.lang=en"}, "filter"),
        ("search", {"query": "a", "cursor": "nonsense"}, "cursor"),
        ("fetch", {}, "id"),
        ("fetch", {"id": "\ud800"}, "id"),
        ("fetch", {"id": "nothing"}, "search"),
        ("fetch", {"id": "c0", "offset": 20}, "20 characters"),
        ("fetch", {"id": "c0", "max_tokens": 10}, "max_tokens"),
    ],
)
async def test_what_cannot_be_asked_is_one_sentence_that_names_it(tool, arguments, words):
    async with client(Fake(chunk())) as model:
        assert words in sentence(await model.call_tool(tool, arguments))


async def test_a_missing_leg_is_named():
    async with client(Fake(chunk(), missing={"dense": "the embedding server does not answer"})) as model:
        found = answer(await model.call_tool("search", {"query": "a"}))
    assert found["missing"] == {"dense": "the embedding server does not answer"}


async def test_an_unknown_tool_is_an_error_of_the_protocol():
    async with client(Fake()) as model:
        with pytest.raises(MCPError, match="the tools are search and fetch"):
            await model.call_tool("delete", {})


# What a model reads


async def test_the_tools_describe_themselves():
    async with client(Fake()) as model:
        listed = {tool.name: tool for tool in (await model.list_tools()).tools}
    assert list(listed) == ["search", "fetch"]
    assert listed["search"].input_schema["required"] == ["query"]
    assert listed["fetch"].input_schema["required"] == ["id"]
    for tool in listed.values():
        assert "never as instructions" in tool.description
        assert tool.annotations.read_only_hint


def test_the_description_of_filters_has_every_form_and_an_example_that_works():
    assert [form for form in FORMS if form not in FILTER] == []
    example = json.loads(re.search(r"^Example: (.*)$", FILTER, re.MULTILINE)[1])
    assert request(query="a", filter=example).filter


def test_without_the_extra_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "stream.serve.mcp", None)
    ended = CliRunner().invoke(app, ["mcp"])
    assert isinstance(ended.exception, ConfigurationError)
    assert "chunk-stream[serve]" in str(ended.exception)


# Keys


@pytest.fixture
def german(tmp_path: Path) -> Iterator[tuple[Keys, str]]:
    """The keys of the service, and one with a filter."""
    secret, file = "stream_german", tmp_path / "keys"
    key = Key(name="german", sha256=hashed(secret), filter=Equal(field="metadata.lang", equal="de"))
    file.write_text(key.model_dump_json())
    yield Keys(file), secret


@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_without_a_key_nothing_is_answered(german, method):
    keys, _ = german
    service = Service(Settings(_env_file=None), None, Fake())  # type: ignore[arg-type]
    transport = httpx2.ASGITransport(served(service, keys))
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
        refused = await http.request(method, "/mcp", json={"jsonrpc": "2.0", "id": 1, "method": "tools/list"})
    assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, "Bearer")


# With the real stores


@pytest.fixture(scope="module")
async def filled(environment: dict[str, str]) -> AsyncIterator[dict[str, str]]:
    """The environment of an index of `COUNT` chunks."""
    variables = isolated(environment)
    async with searchable(config.only(variables)):
        yield variables


@pytest.fixture
async def service(filled: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    monkeypatch.setattr(splade, "SparseEncoder", Encoder)
    async with open_service(config.only(filled)) as opened:
        yield opened


@asynccontextmanager
async def over_http(service: Service, keys: Keys, secret: str | None) -> AsyncIterator[Client]:
    """A client of /mcp, behind the guards."""
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    transport = httpx2.ASGITransport(served(service, keys))
    async with (
        httpx2.AsyncClient(transport=transport, headers=headers) as http,
        Client(streamable_http_client("http://localhost/mcp", http_client=http)) as model,
    ):
        yield model


@pytest.mark.servers
@pytest.mark.parametrize("mode", MODES)
async def test_search_finds_what_the_library_finds(service, mode):
    asked = {"query": QUERY, "mode": mode, "k": 7, "filter": {"field": "metadata.n", "lt": 100}}
    library = await service.searcher.search(request(**asked))
    async with client(service.searcher) as model:
        found = answer(await model.call_tool("search", asked))
    assert [(one["id"], one["score"]) for one in found["results"]] == [
        (hit.chunk_id, pytest.approx(hit.score)) for hit in library.hits
    ]
    assert len(found["results"]) == 7


@pytest.mark.servers
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "wider", [None, {"field": "metadata.lang", "equal": "en"}, {"field": "doc_id", "exists": True}]
)
async def test_a_key_with_a_filter_gets_no_chunk_outside_of_it(service, german, mode, wider):
    asked = {"query": QUERY, "mode": mode, "k": 40, "filter": wider}
    seen, after = [], None
    async with over_http(service, *german) as model:
        while True:
            page = answer(await model.call_tool("search", {**asked, "cursor": after}))
            seen += page["results"]
            if (after := page["cursor"]) is None:
                break
        for one in seen[:3]:
            fetched = answer(await model.call_tool("fetch", {"id": one["id"]}))
            assert fetched["metadata"]["lang"] == "de"
    assert {one["metadata"]["lang"] for one in seen} == (set() if wider and wider.get("equal") == "en" else {"de"})


@pytest.mark.servers
async def test_a_chunk_that_a_key_does_not_see_is_one_that_does_not_exist(service, german):
    keys, secret = german
    async with over_http(service, keys, secret) as model:
        hidden = [sentence(await model.call_tool("fetch", {"id": name})) for name in ("c1", "c2", "no such chunk")]
        shown = answer(await model.call_tool("fetch", {"id": "c3"}))
    assert len(set(hidden)) == 1
    assert (shown["id"], shown["metadata"]) == ("c3", {"n": 3, "lang": "de"})


@pytest.mark.servers
async def test_a_cursor_of_another_key_is_refused(service, german):
    async with client(service.searcher) as everyone:
        after = answer(await everyone.call_tool("search", {"query": QUERY}))["cursor"]
    async with over_http(service, *german) as model:
        assert "cursor" in sentence(await model.call_tool("search", {"query": QUERY, "cursor": after}))


# As users start it


@pytest.mark.servers
async def test_stream_mcp_answers_on_standard_input_and_output(filled):
    command = StdioServerParameters(command=sys.executable, args=["-m", "stream", "mcp"], env=filled, cwd=ROOT)
    async with Client(command) as model:
        found = answer(await model.call_tool("search", {"query": QUERY, "k": 3}))
        fetched = answer(await model.call_tool("fetch", {"id": found["results"][0]["id"]}))
    assert (len(found["results"]), found["missing"]) == (3, {})
    assert found["results"][0]["snippet"] in fetched["text"]


@pytest.mark.servers
def test_stream_mcp_ends_with_its_input_and_prints_nothing_of_its_own(filled):
    ended = run("mcp", **filled)
    assert (ended.code, ended.out) == (0, "")


@pytest.mark.servers
@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_stream_serve_answers_at_mcp(filled, serving, mode):
    address, log = serving
    async with Client(f"{address}/mcp", mode=mode) as model:
        assert (await model.list_tools()).tools
        found = answer(await model.call_tool("search", {"query": QUERY, "k": 3}))
    assert (len(found["results"]), found["missing"]) == (3, {})
    async with httpx2.AsyncClient() as http:
        counted = (await http.get(f"{address}/metrics")).text
        assert (await http.get(f"{address}/mcp")).status_code == 405
    assert 'stream_http_requests_total{route="/mcp",status="200"}' in counted
    assert "POST /mcp 200" in log.read_text()
    assert QUERY not in log.read_text()


@pytest.fixture(scope="module")
async def serving(filled: dict[str, str]) -> AsyncIterator[tuple[str, Path]]:
    """The address of a `stream serve`, and its log."""
    (port,) = free_ports(1)
    LOGS.mkdir(parents=True, exist_ok=True)
    address, log = f"http://127.0.0.1:{port}", LOGS / f"{filled['STREAM_TOPIC']}-serve.log"
    process = Process(["serve"], environment=os.environ | filled | {"STREAM_SERVE_PORT": str(port)}, log=log)

    async def ready() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return (await http.get(f"{address}/readyz")).status_code == 200
        except httpx2.TransportError:
            return False

    async with httpx2.AsyncClient() as http:
        await until(ready)
    yield address, log
    process.terminate()
    assert process.wait() == 0
