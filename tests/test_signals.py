"""If these fail, a starting worker ignores SIGTERM until its orchestrator kills it."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from support import LOGS, until

from stream.config import Settings
from stream.kafka import topics

UNSHARE = shutil.which("unshare")
NEW_PIDS = [str(UNSHARE), "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"]


class Silent:
    """A server that accepts connections and never answers."""

    async def __aenter__(self) -> "Silent":
        self.asked = asyncio.Event()
        self._server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked.set()
        await reader.read()
        writer.close()


class Starting:
    """A process of the product, and its log."""

    def __init__(self, *command: str, under: tuple[str, ...] = (), **variables: str) -> None:
        LOGS.mkdir(parents=True, exist_ok=True)
        self.log = LOGS / f"signals-{os.getpid()}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*under, sys.executable, "-m", "stream", "--set=web_port=0", *command],
                env=os.environ | variables, stdout=log, stderr=log,
            )  # fmt: skip

    async def __aenter__(self) -> "Starting":
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def handles(self, number: int, pid: int | None = None) -> bool:
        """Whether the process has a handler for this signal."""
        try:
            status = Path(f"/proc/{pid or self.process.pid}/status").read_text()
        except OSError:
            return False
        caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
        return bool(int(caught, 16) & 1 << (number - 1))

    def child(self) -> int | None:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0]) if children else None

    async def has_said(self, words: str) -> None:
        await until(lambda: asyncio.sleep(0, words in self.log.read_text()), every=0.01)

    async def exit_code(self) -> int:
        return await asyncio.to_thread(self.process.wait, 60)

    async def ends_before_it_takes_anything(self) -> None:
        assert await self.exit_code() == 0, self.log.read_text()
        assert "batch of" not in self.log.read_text()


@pytest.fixture
async def silent() -> AsyncIterator[Silent]:
    async with Silent() as server:
        yield server


@pytest.fixture
def no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAM_ENV_FILE", "/dev/null")
    monkeypatch.setenv("REQUIRE_GPU", "0")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_during_the_imports_ends_a_worker(no_file, silent, number):
    """The handler is installed long before the imports that could connect to a server."""
    async with Starting("worker", "embed", STREAM_EMBED_URL=f"http://{silent.address}") as starting:
        await until(lambda: asyncio.sleep(0, starting.handles(signal.SIGTERM)), every=0.001)
        assert not silent.asked.is_set()
        starting.process.send_signal(number)
        await starting.ends_before_it_takes_anything()
        assert not silent.asked.is_set()


async def test_a_signal_that_comes_while_a_server_is_asked_ends_a_worker(no_file, silent):
    async with Starting("worker", "embed", STREAM_EMBED_URL=f"http://{silent.address}") as starting:
        await silent.asked.wait()
        starting.process.send_signal(signal.SIGTERM)
        await starting.ends_before_it_takes_anything()


@pytest.mark.skipif(
    UNSHARE is None or subprocess.run([*NEW_PIDS, "true"], capture_output=True, check=False).returncode != 0,
    reason="no PID namespace can be made here",
)
@pytest.mark.parametrize("moment", ["imports", "preflight"])
async def test_process_1_of_a_container_does_not_ignore_a_signal(no_file, silent, moment):
    variables = {"STREAM_EMBED_URL": f"http://{silent.address}"}
    async with Starting("worker", "embed", under=tuple(NEW_PIDS), **variables) as starting:

        async def handles() -> bool:
            return (pid := starting.child()) is not None and starting.handles(signal.SIGTERM, pid)

        await until(handles, every=0.001)
        if moment == "preflight":
            await silent.asked.wait()
        os.kill(starting.child(), signal.SIGTERM)
        await starting.ends_before_it_takes_anything()


@pytest.mark.servers
async def test_a_signal_while_the_stores_are_opened_ends_a_worker(flow, silent):
    async with Starting("worker", "index", STREAM_NEO4J_URI=f"bolt://{silent.address}") as starting:
        await silent.asked.wait()
        starting.process.send_signal(signal.SIGTERM)
        await starting.ends_before_it_takes_anything()


class LikeFaust(RoundRobinPartitionAssignor):
    """An assignor with the same protocol name as the workers' consumer group."""

    name = "faust"


class Dawdling(ConsumerRebalanceListener):
    """Blocks the rebalance: keeps its partitions until it may release them."""

    def __init__(self) -> None:
        self.assigned, self.asked, self.let_go = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def on_partitions_assigned(self, assigned: object) -> None:
        self.assigned.set()

    async def on_partitions_revoked(self, revoked: object) -> None:
        if revoked:
            self.asked.set()
            await self.let_go.wait()


@pytest.mark.servers
async def test_a_signal_while_the_group_is_joined_ends_a_worker(flow: Settings):
    """Joining takes as long as the slowest member needs to drain."""
    other, dawdling = (
        AIOKafkaConsumer(
            bootstrap_servers=flow.kafka_servers,
            group_id=topics.group(flow, "embed"),
            partition_assignment_strategy=[LikeFaust],
            enable_auto_commit=False,
            rebalance_timeout_ms=300_000,
        ),
        Dawdling(),
    )
    await other.start()
    try:
        other.subscribe([flow.topic], listener=dawdling)
        await dawdling.assigned.wait()
        async with Starting("worker", "embed", STREAM_EMBED_REUSE="0") as starting:
            await dawdling.asked.wait()
            starting.process.send_signal(signal.SIGTERM)
            await starting.ends_before_it_takes_anything()
    finally:
        dawdling.let_go.set()
        await other.stop()


async def test_a_parent_of_several_workers_ends_while_they_start(no_file, silent, tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho GPU-one\necho GPU-two\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    async with Starting("worker", "expand", "--gpus", "all", STREAM_KAFKA_SERVERS=silent.address) as starting:
        await until(lambda: asyncio.sleep(0, starting.child() is not None), every=0.001)
        starting.process.send_signal(signal.SIGTERM)
        await starting.ends_before_it_takes_anything()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_every_other_command_ends_at_sigterm_as_it_does_at_ctrl_c(no_file, silent, number):
    """A supervisor must not mistake an incomplete reindex for a complete one."""
    async with Starting("status", STREAM_KAFKA_SERVERS=silent.address) as starting:
        await silent.asked.wait()
        starting.process.send_signal(number)
        assert await starting.exit_code() == 130
        assert "interrupted" in starting.log.read_text().splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["delete", "--doc-id", "worker"], 130),
        (["--set", "instance=worker", "status"], 130),
        (["--set", "instance=status", "worker", "embed"], 0),
    ],
)
async def test_what_a_signal_means_is_known_by_the_command_and_by_nothing_that_looks_like_it(
    no_file, silent, arguments, code
):
    servers = {"STREAM_KAFKA_SERVERS": silent.address, "STREAM_EMBED_URL": f"http://{silent.address}"}
    async with Starting(*arguments, **servers) as starting:
        await until(lambda: asyncio.sleep(0, starting.handles(signal.SIGTERM)), every=0.001)
        starting.process.send_signal(signal.SIGTERM)
        assert await starting.exit_code() == code
