"""The versions of servers, Java and Python that the tests ran with. `make test-matrix` writes them to tried.json."""

import json
import re
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("tried.json")


@cache
def versions(what: str) -> list[str]:
    """The versions of a server or a language that passed, the oldest first."""
    passed = {row["version"] for row in json.loads(FILE.read_text()) if row["what"] == what}
    return sorted(passed, key=lambda version: [int(number) for number in re.findall(r"\d+", version)])


def remark(what: str, version: str) -> str | None:
    """A sentence if no test ran with this minor version; None if one did."""
    tried = versions(what)
    if _minor(version) in map(_minor, tried):
        return None
    return f"no test has run with {what} {version}, only with {', '.join(tried)}: docs/versions.md"


def _minor(version: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\d+", version)[:2])
