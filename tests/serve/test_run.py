"""If these fail, a service is asked before it can answer, cuts off answers when it stops, or is open to strangers."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sysconfig
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from conftest import isolated
from ports import free_ports
from processes import run
from searchable import searchable
from serving import Server
from support import until

from stream import config
from stream.kafka import topics
from stream.local import supervisor
from stream.local.profile import Profile

pytestmark = pytest.mark.servers

TEXT = "a query that nobody else needs to see"
REQUESTS = 40  # of each operation
CHECKS = "not_a_server_error,content_type_conformance,response_schema_conformance"


@pytest.fixture(scope="module")
async def variables(environment: dict[str, str]) -> AsyncIterator[dict[str, str]]:
    """The environment of a service with a small index."""
    found = isolated(environment)
    async with searchable(config.only(found)) as settings:
        await topics.create(settings)
        yield found


@pytest.fixture(scope="module")
async def server(variables: dict[str, str]) -> AsyncIterator[Server]:
    """A service that is ready."""
    async with Server(variables) as running:
        await running.says(200)
        yield running


async def test_no_generated_request_makes_the_service_fail(server, tmp_path):
    report = tmp_path / "report.json"
    schemathesis = Path(sysconfig.get_path("scripts")) / "st"
    command = [schemathesis, "run", f"{server.url}/openapi.json", "--checks", CHECKS, "--phases", "examples,fuzzing"]
    command += ["--max-examples", str(REQUESTS), "--seed", "1", "--report", "json", "--report-json-path", report]
    command += ["--suppress-health-check", "all", "--no-color"]
    ended = await asyncio.to_thread(subprocess.run, command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-5000:]
    assert "passed" in ended.stdout


async def test_a_line_of_the_log_is_json_without_the_query(server):
    await server.post("/search", {"query": TEXT})
    await server.post("/search", {"query": TEXT, "k": 0})
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    asked = [line for line in lines if line.get("route") == "/search"]
    assert [line["status"] for line in asked[-2:]] == [200, 422]
    assert TEXT not in server.log.read_text()


async def test_a_service_with_nothing_to_search_is_not_ready_and_says_why(variables):
    async with Server(variables | {"STREAM_OPENSEARCH_ALIAS": "nothing-there"}) as other:
        await other.says(503, "nothing to search yet")
        assert (await other.get("/healthz")).status_code == 200
        assert (await other.post("/search", {"query": "a", "mode": "bm25"})).status_code == 503
        other.process.terminate()
        assert await other.exit_code() == 0


async def test_a_stopping_service_answers_what_it_has_begun(variables, profile: Profile | None):
    if profile is None:
        pytest.skip("these servers are not ours to stop")
    async with Server(variables) as stopping:
        await stopping.says(200)
        supervisor.kill(profile, "embedder", signal.SIGSTOP)
        try:
            answer = asyncio.create_task(
                stopping.post("/search", {"query": "a new question about files", "deadline": 3})
            )

            async def begun() -> bool:
                return "stream_http_in_flight 1.0" in (await stopping.get("/metrics")).text

            await until(begun, every=0.01)
            stopping.process.terminate()
            found = await answer
        finally:
            supervisor.kill(profile, "embedder", signal.SIGCONT)
        assert (found.status_code, set(found.json()["degraded"])) == (200, {"dense"})
        assert await stopping.exit_code() == 0


async def test_what_it_cannot_serve_is_one_sentence(variables, tmp_path):
    open_to_all = await asyncio.to_thread(run, "serve", **variables | {"STREAM_SERVE_HOST": "0.0.0.0"})
    assert (open_to_all.code, "without keys" in open_to_all.err) == (78, True)
    (port,) = free_ports(1)
    listener = await asyncio.start_server(lambda *_: None, "127.0.0.1", port)
    taken = await asyncio.to_thread(run, "serve", **variables | {"STREAM_SERVE_PORT": str(port)})
    listener.close()
    assert (taken.code, "STREAM_SERVE_PORT" in taken.err) == (78, True)
    missing = await asyncio.to_thread(run, "serve", **variables | {"STREAM_SERVE_KEYS": str(tmp_path / "none")})
    assert (missing.code, "cannot read the keys" in missing.err) == (78, True)
    model = {"STREAM_SPLADE_MODEL": str(tmp_path), "REQUIRE_GPU": "0", "STREAM_SERVE_PORT": str(port)}
    assert (await asyncio.to_thread(run, "serve", **variables | model)).code == 78


async def test_a_new_key_opens_the_service_and_its_filter_holds(variables, tmp_path):
    made = await asyncio.to_thread(run, "keys", "new", "team", "-f", "metadata.lang=en", **variables)
    secret, file = made.err.split()[-1], tmp_path / "keys"
    file.write_text(made.out)
    assert secret not in made.out
    async with Server(variables | {"STREAM_SERVE_KEYS": str(file), "STREAM_SERVE_HOST": "0.0.0.0"}) as closed:
        await closed.says(200)
        assert (await closed.post("/search", {"query": "a socket"})).status_code == 401
        curl = [shutil.which("curl") or "curl", "-sS", f"{closed.url}/search", "-H", f"Authorization: Bearer {secret}"]
        curl += ["-H", "Content-Type: application/json", "-d", json.dumps({"query": "a socket", "k": 100})]
        answer = await asyncio.to_thread(subprocess.run, curl, capture_output=True, check=True, env=dict(os.environ))
        hits = json.loads(answer.stdout)["hits"]
    assert {hit["metadata"]["lang"] for hit in hits} == {"en"}
