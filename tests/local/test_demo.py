"""If these fail, `make demo` shows the answers of another question or service, or its search service is not there."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import orjson
import pytest
import uvicorn
from ports import free_ports
from serving import fake_service
from support import wait_until
from typer.testing import CliRunner

from stream.cli import app
from stream.config import load
from stream.errors import Outage, StreamError
from stream.local import demo
from stream.local.profile import Profile
from stream.search.answer import Answer, Hit, Snippet
from stream.search.request import Request
from stream.serve.access import Keys
from stream.serve.app import served

QUESTIONS = ("first question", "second question")
MODES = ("bm25", "dense")


@contextmanager
def serving(answers: Any) -> Iterator[str]:
    """The address of a real service whose searcher answers as the test wants."""
    service, searcher = fake_service()
    searcher.search_all = answers  # type: ignore[method-assign]
    (port,) = free_ports(1)
    server = uvicorn.Server(uvicorn.Config(served(service, Keys(None)), port=port, log_config=None, lifespan="off"))
    thread = Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def hit(chunk_id: str) -> Hit:
    return Hit(chunk_id, "d", 1, 1.0, {}, "text", Snippet("text", []))


def test_each_question_has_the_answers_of_each_mode_in_order() -> None:
    async def answers(asked: list[Request]) -> list[Answer]:
        return [
            Answer([hit(f"{one.query} {one.mode} {n}") for n in range(one.k)], 1, 0, 2, None, {}, []) for one in asked
        ]

    with serving(answers) as address:
        found = demo.ask(address, QUESTIONS, MODES, 2)
    assert found == [[[f"{question} {mode} {n}" for n in range(2)] for mode in MODES] for question in QUESTIONS]


def test_a_question_without_an_answer_says_why() -> None:
    async def answers(asked: list[Request]) -> list[StreamError]:
        return [Outage("Neo4j does not answer") for _ in asked]

    with serving(answers) as address, pytest.raises(Outage, match="Neo4j does not answer"):
        demo.ask(address, QUESTIONS, MODES, 2)


def test_a_service_that_is_not_there_is_one_sentence() -> None:
    (port,) = free_ports(1)
    with pytest.raises(Outage, match=f"the search service at http://127.0.0.1:{port} does not answer"):
        demo.ask(f"http://127.0.0.1:{port}", QUESTIONS, MODES, 2)


def test_the_service_listens_on_this_machine_at_the_profiles_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = Profile(tmp_path, serve_port=20080)
    program = demo.search(profile, profile.write_env_file())
    for name, value in program.environment.items():
        monkeypatch.setenv(name, value)
    settings = load()
    assert (settings.serve_host, settings.serve_port, settings.serve_keys) == ("127.0.0.1", 20080, None)
    assert settings.kafka_servers == "127.0.0.1:19092"
    assert program.address == "http://127.0.0.1:20080"


def test_the_status_lists_every_program(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["local", "status", "--home", str(tmp_path), "--json"])
    found = {program["name"]: program["address"] for program in orjson.loads(done.stdout)}
    assert list(found)[-5:] == ["embedder", "worker-embed", "worker-expand", "worker-index", "search"]
    assert found["search"] == "http://127.0.0.1:18080"
