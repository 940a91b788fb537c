"""Keys for tests of the service."""

from collections.abc import Callable
from pathlib import Path

import pytest

from stream.search.filters import Filter
from stream.serve.access import made


@pytest.fixture
def key(tmp_path: Path) -> Callable[..., tuple[Path, str]]:
    """Adds a key to the file of keys; returns both."""

    def add(name: str = "team", condition: Filter | None = None) -> tuple[Path, str]:
        secret, entry = made(name, condition)
        file = tmp_path / "keys"
        with file.open("a") as lines:
            lines.write(entry.model_dump_json(exclude_none=True) + "\n")
        return file, secret

    return add
