"""The service in this process, before the real application and its guards."""

from pathlib import Path
from typing import Any

import httpx
import orjson

from stream.config import Settings
from stream.serve.access import Keys
from stream.serve.app import served
from stream.serve.service import Service


def client(service: Service, keys: Path | None = None, secret: str | None = None) -> httpx.AsyncClient:
    """A client of the service, with a key."""
    transport = httpx.ASGITransport(served(service, Keys(keys)), raise_app_exceptions=False)
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    return httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers)


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
