"""A service before a small index in the real stores, in this process, and clients with keys."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest
from conftest import isolated
from searchable import searchable
from serving import TEAM, add_key, client

from stream import config
from stream.config import Settings
from stream.kafka import topics
from stream.search.filters import Filter
from stream.serve.service import Service, open_service


@pytest.fixture
def key(tmp_path: Path) -> Callable[..., tuple[Path, str]]:
    """Adds a key to the file of keys; returns both."""
    file = tmp_path / "keys"

    def add(name: str = "team", condition: Filter | None = None) -> tuple[Path, str]:
        return file, add_key(file, name, condition)

    return add


@pytest.fixture(scope="module")
async def filled(environment: dict[str, str]) -> AsyncIterator[Settings]:
    """The settings of an index of `COUNT` chunks, and of topics without records."""
    async with searchable(config.only(isolated(environment))) as settings:
        await topics.create(settings)
        yield settings


@pytest.fixture
async def service(filled: Settings) -> AsyncIterator[Service]:
    async with open_service(filled) as opened:
        yield opened


@pytest.fixture
async def everyone(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    """A client without a filter."""
    async with client(service) as http:
        yield http


@pytest.fixture
async def team(service: Service, key: Callable[..., tuple[Path, str]]) -> AsyncIterator[httpx.AsyncClient]:
    """A client whose key sees English chunks only."""
    file, secret = key("team", TEAM)
    async with client(service, file, secret) as http:
        yield http
