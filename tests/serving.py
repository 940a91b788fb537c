"""The service for tests: in this process, with or without stores, or in a process of its own."""

import asyncio
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import httpx
import orjson
from ports import free_ports
from processes import Process
from support import LOGS, LONGEST, until

from stream.config import Settings
from stream.search.filters import Equal, Filter
from stream.serve.access import Keys, made
from stream.serve.app import served
from stream.serve.service import Service

TEAM = Equal(field="metadata.lang", equal="en")  # what the key of the fixture `team` sees


def client(service: Service, keys: Path | None = None, secret: str | None = None) -> httpx.AsyncClient:
    """A client of the service, with a key."""
    transport = httpx.ASGITransport(served(service, Keys(keys)), raise_app_exceptions=False)
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    return httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers)


def add_key(file: Path, name: str, condition: Filter | None = None) -> str:
    """Adds a new key to a file of keys; returns the key."""
    secret, entry = made(name, condition)
    with file.open("a") as lines:
        lines.write(entry.model_dump_json(exclude_none=True) + "\n")
    return secret


class Fake:
    """A searcher that returns or raises what a test wants, and notes what it was asked."""

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer
        self.asked: list[Any] = []

    async def search(self, asked: Any) -> Any:
        self.asked.append(asked)
        if callable(self.answer):
            return await self.answer()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def search_all(self, asked: list[Any]) -> list[Any]:
        return [self.answer for _ in asked]

    async def chunk(self, chunk_id: str) -> Any:
        return None

    async def detail(self, chunk_id: str, condition: Any) -> Any:
        return None


def fake_service(answer: Any = None, **settings: Any) -> tuple[Service, Fake]:
    """A service without stores."""
    searcher = Fake(answer)
    return Service(Settings(_env_file=None, **settings), None, searcher), searcher  # type: ignore[arg-type]


def problem(response: httpx.Response) -> dict[str, Any]:
    """The problem that a response is."""
    assert response.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = orjson.loads(response.content)
    assert found["status"] == response.status_code
    return found


class Server:
    """`stream serve` in its own process, on a free port."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        (port,) = free_ports(1)
        LOGS.mkdir(parents=True, exist_ok=True)
        self.url = f"http://127.0.0.1:{port}"
        self.log = LOGS / f"serve-{port}.log"
        self.log.unlink(missing_ok=True)
        environment = os.environ | {"REQUIRE_GPU": "0", "STREAM_LOG_FORMAT": "json"} | variables
        self.process = Process(["serve"], environment=environment | {"STREAM_SERVE_PORT": str(port)}, log=self.log)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGKILL)
        await self.exit_code()

    async def get(self, path: str) -> httpx.Response:
        async with httpx.AsyncClient(base_url=self.url, timeout=LONGEST) as http:
            return await http.get(path)

    async def post(self, path: str, body: Any) -> httpx.Response:
        async with httpx.AsyncClient(base_url=self.url, timeout=LONGEST) as http:
            return await http.post(path, json=body)

    async def says(self, status: int, words: str = "") -> None:
        """Waits until `/readyz` answers with this status and these words."""

        async def answers() -> bool:
            assert self.process.poll() is None, self.log.read_text()[-2000:]
            try:
                answer = await self.get("/readyz")
            except httpx.TransportError:
                return False
            return answer.status_code == status and words in answer.text

        await until(answers)

    async def exit_code(self) -> int:
        async with asyncio.timeout(LONGEST):
            return await asyncio.to_thread(self.process.wait)
