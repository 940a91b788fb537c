"""One Chromium for all tests of a module, and keys for the service."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from browsing import running_browser
from playwright.async_api import Browser

from stream.serve.access import made


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with running_browser() as started:
        yield started


@pytest.fixture
def key(tmp_path: Path) -> tuple[Path, str]:
    """A file with one key, and the key."""
    secret, entry = made("person")
    file = tmp_path / "keys"
    file.write_text(entry.model_dump_json(exclude_none=True) + "\n")
    return file, secret
