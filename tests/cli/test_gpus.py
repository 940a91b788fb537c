"""If these fail, a machine with several GPUs uses only one, or a worker process is left running."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ports import free_ports
from support import LOGS, until

from stream.worker.gpus import PORTS_APART

pytestmark = pytest.mark.servers


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch) -> None:
    """An nvidia-smi that lists two GPUs. The workers do not need them."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho GPU-one\necho GPU-two\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def command(gpus: str, *options: str) -> list[str]:
    return [sys.executable, "-m", "stream", *options, "worker", "expand", "--gpus", gpus]


class Several:
    """`stream worker expand --gpus all` and the two workers that it starts."""

    def __init__(self):
        (self.port,) = free_ports(1)
        self.log = LOGS / f"{os.environ['STREAM_TOPIC']}-gpus.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)

    async def __aenter__(self):
        with self.log.open("ab") as log:
            asked = command("all", "--set", f"web_port={self.port}")
            self.process = subprocess.Popen(asked, stdout=log, stderr=log)
        try:
            await until(lambda: asyncio.sleep(0, self.log.read_text().count("assigned 1 partitions") >= 2), 240)
        except TimeoutError:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        await until(lambda: asyncio.sleep(0, not self.workers()))

    def workers(self) -> dict[int, str]:
        """The workers' process IDs, with the GPU that each may use."""
        found = {}
        for folder in Path("/proc").iterdir():
            try:
                words = (folder / "cmdline").read_bytes().decode().split("\0")
                environment = (folder / "environ").read_bytes().decode().split("\0")
            except (OSError, UnicodeDecodeError):
                continue
            if any(f"--set=web_port={self.port + PORTS_APART * n}" in words for n in range(2)):
                found[int(folder.name)] = next(e for e in environment if e.startswith("CUDA_VISIBLE_DEVICES="))
        return found


async def test_each_gpu_has_a_worker_with_a_share_of_the_partitions_and_sigterm_ends_all(flow, two_gpus):
    async with Several() as several:
        assert sorted(several.workers().values()) == ["CUDA_VISIBLE_DEVICES=GPU-one", "CUDA_VISIBLE_DEVICES=GPU-two"]
        several.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(several.process.wait, 60) == 0
        assert several.workers() == {}


async def test_when_one_is_killed_the_others_drain_and_a_supervisor_is_told(flow, two_gpus):
    async with Several() as several:
        os.kill(min(several.workers()), signal.SIGKILL)
        assert await asyncio.to_thread(several.process.wait, 60) == 75
        assert several.workers() == {}


async def test_when_their_parent_is_killed_none_is_left_behind(flow, two_gpus):
    async with Several() as several:
        several.process.kill()


@pytest.mark.parametrize(("gpus", "code"), [("3", 99), ("0", 2), ("some", 2)])
def test_gpus_that_there_are_not_are_named(settings, two_gpus, gpus, code):
    ended = subprocess.run(command(gpus), capture_output=True, text=True, check=False)
    assert ended.returncode == code
    assert "--gpus" in ended.stderr


def test_without_nvidia_smi_the_exit_code_is_99(settings, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    ended = subprocess.run(command("all"), capture_output=True, text=True, check=False)
    assert ended.returncode == 99
    assert "nvidia-smi" in ended.stderr.splitlines()[-1]
