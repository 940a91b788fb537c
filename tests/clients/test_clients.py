"""If this fails, a program that searches as docs/clients.md says misses new chunks after a reindex, or breaks."""

import asyncio
import os
import re
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import orjson
import pytest
from conftest import ROOT
from ports import free_ports
from processes import child
from serving import Server
from support import LONGEST, Worker, chunk, send, until

from stream import children
from stream.config import STAGES, Settings
from stream.operate import reindex
from stream.operate.reindex import generations
from stream.operate.status import caught_up
from stream.serve.access import made
from stream.stores import Stores

pytestmark = pytest.mark.servers

PAGE = (ROOT / "docs" / "clients.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
PYTHON = ROOT / ".local" / "clients" / "bin" / "python"
CHUNKS = {
    "listen": "A server opens a socket to listen for connections.",
    "socket": "A client opens a socket, too.",
    "queue": "Threads hand work to each other by a queue.",
    "calendar": "The calendar counts months, weeks and days of each year.",
    "month": "Most months have thirty days.",
    "tree": "Parsers turn words into trees.",
}
NEW = {"leap": "A leap year: the calendar counts months, weeks and days of each leap year."}
SOCKETS = "listen for connections of a socket"
YEARS = "months, weeks and days of a leap year"


class Example:
    """An example of the page, as a program that runs all the time."""

    def __init__(self, code: str, folder: Path) -> None:
        self._file = folder / "example.py"
        self._file.parent.mkdir()
        self._file.write_text(code)
        self._log = folder / "log"

    async def start(self, variables: dict[str, str]) -> None:
        with self._log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                PYTHON, self._file, stdin=PIPE, stdout=PIPE, stderr=log, env=variables
            )

    async def ask(self, question: str) -> list[str]:
        """The chunks that it prints."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{question}\n".encode())
        async with asyncio.timeout(LONGEST):
            line = await self._process.stdout.readline()
        assert line, self._log.read_text()
        return line.decode().split()

    async def end(self) -> None:
        """It ends with its input, without an error."""
        assert self._process.stdin
        self._process.stdin.close()
        async with asyncio.timeout(LONGEST):
            assert await self._process.wait() == 0, self._log.read_text()


async def publish(settings: Settings, texts: dict[str, str]) -> None:
    await send(settings, [(name.encode(), orjson.dumps(chunk(name, text))) for name, text in texts.items()])


@pytest.fixture
async def filled(flow: Settings, stores: Stores, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Settings]:
    """A live generation of `CHUNKS`; workers run."""
    monkeypatch.setattr(children, "worker", child)
    await publish(flow, CHUNKS)
    async with AsyncExitStack() as stack:
        for stage, port in zip(STAGES, free_ports(len(STAGES)), strict=True):
            await stack.enter_async_context(Worker(stage, port=port))
        await caught_up(flow)
        yield flow
    for generation in await generations(flow):
        await stores.neo4j.drop(generation.number)
    await stores.neo4j._run("MATCH (n:ChunkGeneration) DELETE n")


@pytest.fixture
async def examples(filled: Settings, variables: dict[str, str], tmp_path: Path) -> AsyncIterator[list[Example]]:
    """The examples, each in a process, and the service that two of them use."""
    assert PYTHON.exists(), "run `make clients` once: it installs the libraries of the examples"
    secret, key = made("clients")
    (tmp_path / "keys").write_text(key.model_dump_json(exclude_none=True))
    async with Server(variables | {"STREAM_SERVE_KEYS": str(tmp_path / "keys")}) as service:
        await service.says(200)
        own = {name: variables[name] for name in variables if name.startswith(("STREAM_NEO4J_", "STREAM_EMBED_"))}
        own |= {"STREAM_NEO4J_USER": filled.neo4j_user, "SEARCH_URL": service.url, "SEARCH_KEY": secret}
        started = [Example(code, tmp_path / str(number)) for number, code in enumerate(EXAMPLES)]
        for example in started:
            await example.start(own | {"PATH": os.environ["PATH"]})
        yield started
        for example in started:
            await example.end()


async def test_each_example_finds_what_is_live_through_a_reindex_and_a_prune(filled, examples):
    async def ask(question: str) -> list[list[str]]:
        return await asyncio.gather(*(example.ask(question) for example in examples))

    assert len(examples) == 4
    assert await ask(SOCKETS) == [["listen", "socket"]] * 4
    assert await ask(YEARS) == [["calendar", "month"]] * 4

    assert await reindex.start(filled) == 2
    assert await ask(SOCKETS) == [["listen", "socket"]] * 4
    await publish(filled, NEW)  # only the live index gets it
    await caught_up(filled)

    async def all_find_it() -> bool:
        return await ask(YEARS) == [["leap", "calendar"]] * 4

    await until(all_find_it)

    assert await reindex.drop(filled, lambda one, live: one.number < live) == [1]
    assert await ask(SOCKETS) == [["listen", "socket"]] * 4
    assert await ask(YEARS) == [["leap", "calendar"]] * 4
