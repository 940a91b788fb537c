"""One Chromium for all tests of a module, and keys for the service."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from browsing import running_browser
from playwright.async_api import Browser
from serving import add_key


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with running_browser() as started:
        yield started


@pytest.fixture
def key(tmp_path: Path) -> tuple[Path, str]:
    """A file with one key, and the key."""
    file = tmp_path / "keys"
    return file, add_key(file, "person")
