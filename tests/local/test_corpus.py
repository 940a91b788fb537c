"""If these fail, the demo has nothing to search, or publishes chunks that the stages refuse."""

from pathlib import Path

import orjson
import pytest

from stream import corpus
from stream.contracts import problem
from stream.errors import ConfigurationError
from stream.records import Chunk

SOURCE = '''
"""A module."""

class Reader:
    """Reads."""

    if True:
        @property
        def name(self) -> str:
            """
            Its name.
            """

    @name.setter
    def name(self, value: str = "x") -> None:
        """Sets it."""

    def blank(self):
        """   """

async def fetch(url, *, retries=3):
    """Fetches."""
    def once():
        """Tries once."""
'''


@pytest.fixture(scope="module")
def chunks() -> list[Chunk]:
    return list(corpus.chunks())


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in the place of the standard library."""
    monkeypatch.setattr(corpus.sysconfig, "get_path", lambda _: str(tmp_path))
    return tmp_path


def test_there_is_enough_to_search(chunks: list[Chunk]):
    assert len(chunks) >= 5_000


def test_every_chunk_survives_the_wire_and_keeps_the_contract(chunks: list[Chunk]):
    assert {problem(orjson.loads(orjson.dumps(chunk)), "chunk") for chunk in chunks} == {None}


def test_no_chunk_replaces_another(chunks: list[Chunk]):
    assert len({chunk["chunk_id"] for chunk in chunks}) == len(chunks)


def test_the_next_run_publishes_the_same(chunks: list[Chunk]):
    assert list(corpus.chunks()) == chunks


def test_tests_and_installed_packages_are_left_out(chunks: list[Chunk]):
    names = {name for chunk in chunks for name in chunk["doc_id"].split(".")}
    assert {"socket", "asyncio", "unittest", "doctest"} <= names
    assert not names & {"test", "tests", "idlelib", "lib2to3", "turtledemo", "pytest"}


def test_what_is_made_of_a_module(library: Path):
    (library / "package").mkdir()
    (library / "package" / "__init__.py").write_text(SOURCE)
    made = [(c["chunk_id"], c["facet_json"], c.get("table_lines"), c["text"]) for c in corpus.chunks()]
    setter = ["@name.setter", "def name(self, value: str='x') -> None:"]
    text = "\n            Its name.\n            "
    assert made == [
        ("package", {"kind": "module", "name": "package"}, None, "A module."),
        ("package:Reader", {"kind": "class", "name": "Reader"}, ["class Reader:"], "Reads."),
        (
            "package:Reader.name",
            {"kind": "method", "name": "Reader.name"},
            ["@property", "def name(self) -> str:"],
            text,
        ),
        ("package:Reader.name#2", {"kind": "method", "name": "Reader.name"}, setter, "Sets it."),
        (
            "package:fetch",
            {"kind": "function", "name": "fetch"},
            ["async def fetch(url, *, retries=3):"],
            "Fetches.",
        ),
        (
            "package:fetch.<locals>.once",
            {"kind": "function", "name": "fetch.<locals>.once"},
            ["def once():"],
            "Tries once.",
        ),
    ]


def test_a_python_without_sources_is_named(library: Path):
    with pytest.raises(ConfigurationError, match=str(library)):
        next(corpus.chunks())
