"""If these fail, a caller gets an error that says nothing, waits for ever, or reads what only others may read."""

import asyncio
import json
import logging
from http import HTTPStatus
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from serving import client, fake_service, problem

from stream.errors import ConfigurationError, DeadlineExceeded, InvalidRequest, Outage, Refused, StreamError
from stream.search.answer import Answer
from stream.search.cursor import OtherGeneration
from stream.search.filters import Equal
from stream.serve import guards
from stream.serve.access import Keys
from stream.serve.guards import OPEN
from stream.serve.service import require_private

EMPTY = Answer([], 1, 0, 0, None, {}, [])
SECRET_TEXT = "a query that nobody else needs to see"
ERRORS = {
    InvalidRequest: 422,
    Refused: 422,
    OtherGeneration: 409,
    DeadlineExceeded: 408,
    Outage: 503,
    ConfigurationError: 503,
    StreamError: 500,
}


async def test_an_answer_is_that_of_the_library():
    service, searcher = fake_service(EMPTY)
    async with client(service) as http:
        answer = await http.post("/search", json={"query": "a", "mode": "bm25", "weights": {"bm25": 2}})
    assert answer.json() == {
        "hits": [],
        "generation": 1,
        "offset": 0,
        "reachable": 0,
        "cursor": None,
        "degraded": {},
        "timings": [],
        "expansion": {},
    }
    (asked,) = searcher.asked
    assert (asked.query, asked.mode, asked.weights) == ("a", "bm25", {"bm25": 2.0})


@pytest.mark.parametrize(("error", "status"), ERRORS.items(), ids=lambda value: getattr(value, "__name__", value))
async def test_each_error_of_the_library_has_a_status_and_its_sentence(error, status):
    service, _ = fake_service(error("the sentence"))
    async with client(service) as http:
        answer = await http.post("/search", json={"query": "a"})
        batch = await http.post("/search/batch", json={"requests": [{"query": "a"}]})
    assert (problem(answer)["status"], problem(answer)["detail"]) == (status, "the sentence")
    assert ("Retry-After" in answer.headers) == (status == 503)
    assert batch.json()["answers"] == [{"answer": None, "problem": problem(answer)}]


async def test_a_fault_of_the_service_shows_nothing_of_itself():
    service, _ = fake_service(ZeroDivisionError(SECRET_TEXT))
    async with client(service) as http:
        answer = await http.post("/search", json={"query": "a"})
    assert problem(answer)["status"] == 500
    assert SECRET_TEXT not in answer.text


def _filtered(condition: str) -> bytes:
    return b'{"query": "a", "filter": ' + condition.encode() + b"}"


BAD = {
    "no JSON": (b"{", 400, "JSON"),
    "not UTF-8": (b'{"query": "\xff"}', 400, "UTF-8"),
    "too deep to read": (_filtered('{"not":' * 5000 + "1" + "}" * 5000), 400, "JSON"),
    "too deep": (_filtered('{"not":' * 50 + "1" + "}" * 50), 422, "filter"),
    "no object": (b"[]", 422, "invalid search"),
    "an unknown field": (b'{"query": "a", "limit": 3}', 422, "limit"),
    "an empty query": (b'{"query": " "}', 422, "query: must not be empty"),
    "a field that cannot be filtered": (_filtered('{"field": "text", "equal": 1}'), 422, "cannot be filtered"),
    "a lone surrogate": (b'{"query": "\\ud800"}', 422, "unicode"),
    "too many hits": (b'{"query": "a", "k": 1000000}', 422, "k: "),
}


@pytest.mark.parametrize(("body", "status", "said"), BAD.values(), ids=BAD)
async def test_what_cannot_be_asked_is_said(body, status, said):
    service, searcher = fake_service(EMPTY)
    async with client(service) as http:
        answer = await http.post("/search", content=body, headers={"Content-Type": "application/json"})
    assert problem(answer)["status"] == status
    assert said in problem(answer)["detail"]
    assert searcher.asked == []


@pytest.mark.parametrize("path", ["/nothing", "/chunks/unknown"])
async def test_what_is_not_there_is_a_problem(path):
    service, _ = fake_service()
    async with client(service) as http:
        assert problem(await http.get(path))["status"] == 404


# Limits


async def test_a_large_request_is_refused_before_it_is_read():
    service, searcher = fake_service(EMPTY, serve_body_bytes=1024)
    async with client(service) as http:
        fits = await http.post("/search", json={"query": "q" * 900})
        answer = await http.post("/search", json={"query": "q" * 2000})
        unannounced = await http.post("/search", content=_parts())
    assert fits.status_code == 200
    assert problem(answer)["status"] == problem(unannounced)["status"] == 413
    assert len(searcher.asked) == 1


async def _parts():
    for _ in range(20):
        yield b"q" * 100


async def test_more_requests_than_the_maximum_are_told_when_to_come_again():
    begun, go_on = asyncio.Semaphore(0), asyncio.Event()

    async def slow() -> Answer:
        begun.release()
        await go_on.wait()
        return EMPTY

    service, _ = fake_service(slow, serve_in_flight=2)
    async with client(service) as http:
        first = [asyncio.create_task(http.post("/search", json={"query": "a"})) for _ in range(2)]
        for _ in first:
            await begun.acquire()
        refused = await http.post("/search", json={"query": "a"})
        probe = await http.get("/healthz")
        go_on.set()
        answered = [await task for task in first]
        after = await http.post("/search", json={"query": "a"})
    assert problem(refused)["status"] == 429
    assert int(refused.headers["Retry-After"]) > 0
    assert [one.status_code for one in [probe, *answered, after]] == [200] * 4


# Access


async def test_without_a_known_key_only_the_open_paths_answer(key):
    file, secret = key()
    service, searcher = fake_service(EMPTY)
    service.unready = None
    for wrong in (None, "", "stream_wrong", secret + "x", file.read_text(), "ü"):
        async with client(service, file) as http:
            headers = {} if wrong is None else {"Authorization": f"Bearer {wrong}".encode()}
            answer = await http.post("/search", json={"query": "a"}, headers=headers)
            assert problem(answer)["status"] == 401
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            for path in OPEN:
                assert (await http.get(path)).status_code != 401
    assert searcher.asked == []
    async with client(service, file, secret) as http:
        assert (await http.post("/search", json={"query": "a"})).status_code == 200


async def test_every_route_that_is_not_open_needs_a_key(key):
    """A new route must not be open by mistake."""
    file, _ = key()
    service, _ = fake_service(EMPTY)
    async with client(service, file) as http:
        paths = (await http.get("/openapi.json")).json()["paths"]
        assert len(paths) > 3
        for path, methods in paths.items():
            for method in methods:
                answer = await http.request(method, path.replace("{chunk_id}", "c1"))
                assert answer.status_code == 401, path


async def test_a_key_s_filter_is_added_to_every_search(key):
    file, secret = key("team", Equal(field="metadata.team", equal="a"))
    service, searcher = fake_service(EMPTY)
    own = {"field": "metadata.lang", "equal": "en"}
    async with client(service, file, secret) as http:
        await http.post("/search", json={"query": "a"})
        await http.post("/search", json={"query": "a", "filter": own})
    team = {"field": "metadata.team", "equal": "a"}
    assert [asked.filter.model_dump() for asked in searcher.asked] == [team, {"all": [team, own]}]


async def test_a_key_is_revoked_without_a_restart(key):
    file, secret = key()
    service, _ = fake_service(EMPTY)
    async with client(service, file, secret) as http:
        assert (await http.post("/search", json={"query": "a"})).status_code == 200
        file.write_text("")
        assert (await http.post("/search", json={"query": "a"})).status_code == 401


async def test_a_file_that_becomes_wrong_takes_no_key_away(key, caplog):
    file, secret = key()
    service, _ = fake_service(EMPTY)
    async with client(service, file, secret) as http:
        file.write_text("not a key")
        assert (await http.post("/search", json={"query": "a"})).status_code == 200
        file.unlink()
        assert (await http.post("/search", json={"query": "a"})).status_code == 200
    assert "line 1" in caplog.text


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2"),
        ('{"name": "a"}', "sha256"),
        ('{"name": "a", "sha256": "abc"}', "sha256"),
        ('{"name": "a", "sha256": "' + "0" * 64 + '", "filter": {"field": "text", "equal": 1}}', "filter"),
        ('{"name": "a", "sha256": "' + "0" * 64 + '", "fliter": {}}', "fliter"),
    ],
)
def test_a_file_of_keys_that_is_wrong_is_not_served(tmp_path: Path, line, said):
    file = tmp_path / "keys"
    file.write_text(f"\n{line}\n")
    with pytest.raises(ConfigurationError, match=said):
        Keys(file)
    with pytest.raises(ConfigurationError, match="cannot read the keys"):
        Keys(tmp_path / "none")


def test_without_keys_only_this_machine_is_served():
    for host in ("127.0.0.1", "::1", "localhost"):
        require_private(host, has_keys=False)
    for host in ("0.0.0.0", "::", "", "10.0.0.1", "example.org"):
        require_private(host, has_keys=True)
        with pytest.raises(ConfigurationError, match="STREAM_SERVE_KEYS"):
            require_private(host, has_keys=False)


async def test_without_keys_a_page_of_another_name_reads_nothing(key):
    """DNS rebinding: a web page's own name leads to this machine, and its scripts read the service."""
    service, searcher = fake_service(EMPTY)
    async with client(service) as http:
        for host in ("example.org", "example.org:8080", "127.0.0.1.example.org", ""):
            answer = await http.post("/search", json={"query": "a"}, headers={"Host": host})
            assert problem(answer)["status"] == 421
        for host in ("localhost", "localhost:8080", "127.0.0.1:1", "[::1]:8080"):
            assert (await http.post("/search", json={"query": "a"}, headers={"Host": host})).status_code == 200
    file, secret = key()
    async with client(service, file, secret) as http:
        assert (await http.post("/search", json={"query": "a"}, headers={"Host": "example.org"})).status_code == 200
    assert len(searcher.asked) == 5


async def test_no_other_site_may_read_frame_or_extend_an_answer():
    service, _ = fake_service(EMPTY)
    async with client(service) as http:
        asked = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
        answers = [
            await http.post("/search", json={"query": "a"}, headers={"Origin": "https://example.org"}),
            await http.options("/search", headers=asked),
            await http.get("/nothing"),
        ]
    for answer in answers:
        assert not [name for name in answer.headers if name.startswith("access-control-")]
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answers[0].headers["Cache-Control"] == "no-store"


# The log and the metrics


async def test_no_log_line_and_no_metric_has_a_query_an_id_or_a_key(key, caplog):
    caplog.set_level(logging.DEBUG)
    file, secret = key("team-a")
    service, _ = fake_service(EMPTY)
    async with client(service, file, secret) as http:
        await http.post("/search", json={"query": SECRET_TEXT})
        await http.post("/search", json={"query": SECRET_TEXT, "k": SECRET_TEXT})
        await http.get(f"/chunks/{SECRET_TEXT}/why", params={"q": SECRET_TEXT})
        await http.get(f"/{SECRET_TEXT}")
        metrics = (await http.get("/metrics")).text
    lines = [record for record in caplog.records if record.name == "stream.serve"]
    assert [(line.route, line.status, line.key) for line in lines][:2] == [
        ("/search", 200, "team-a"),
        ("/search", 422, "team-a"),
    ]
    assert 'stream_http_requests_total{route="/search",status="200"}' in metrics
    for written in (caplog.text, metrics, *(json.dumps(line.__dict__, default=str) for line in lines)):
        assert SECRET_TEXT not in written
        assert secret not in written


async def test_a_span_continues_the_caller_s_trace_and_has_no_text(monkeypatch):
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(guards, "_tracer", provider.get_tracer("stream"))
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"  # of the W3C's own example
    service, _ = fake_service(Outage("down"))
    async with client(service) as http:
        headers = {"traceparent": f"00-{trace}-{parent}-01"}
        await http.post("/search", json={"query": SECRET_TEXT}, headers=headers)
    (span,) = exporter.get_finished_spans()
    assert (span.name, span.status.status_code.name) == ("POST /search", "ERROR")
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (trace, parent)
    assert SECRET_TEXT not in span.to_json()


async def test_a_degraded_search_is_counted():
    service, _ = fake_service(Answer([], 1, 0, 0, None, {"dense": "no model"}, []))

    def count(text: str) -> float:
        lines = [line for line in text.splitlines() if line.startswith('stream_searches_degraded_total{leg="dense"}')]
        return float(lines[0].split()[1]) if lines else 0

    async with client(service) as http:
        before = count((await http.get("/metrics")).text)
        await http.post("/search", json={"query": "a"})
        await http.post("/search/batch", json={"requests": [{"query": "a"}, {"query": "b"}]})
        assert count((await http.get("/metrics")).text) == before + 3


# The description of the interface


async def test_the_committed_description_is_the_one_that_is_served():
    service, _ = fake_service()
    async with client(service) as http:
        served = (await http.get("/openapi.json")).json()
    committed = json.loads((Path(__file__).parents[2] / "docs" / "openapi.json").read_text())
    assert served == committed, "run `make docs`"


async def test_each_example_of_the_description_is_a_valid_request():
    service, searcher = fake_service(EMPTY)
    async with client(service) as http:
        search = (await http.get("/openapi.json")).json()["paths"]["/search"]["post"]
        examples = search["requestBody"]["content"]["application/json"]["examples"]
        for example in examples.values():
            assert (await http.post("/search", json=example["value"])).status_code == HTTPStatus.OK
    assert len(searcher.asked) == len(examples) > 2
