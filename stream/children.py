"""Child processes that end when their parent ends."""

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from stream.config import StageName
from stream.errors import Outage

PR_SET_PDEATHSIG = 1  # prctl(2)


def arguments(stage: StageName, assignments: Mapping[str, str]) -> list[str]:
    """The arguments of `stream` that run a worker with these settings."""
    return [*(f"--set={name}={value}" for name, value in assignments.items()), "worker", stage]


def worker(
    stage: StageName, assignments: Mapping[str, str], variables: Mapping[str, str], log: IO[bytes] | None = None
) -> "subprocess.Popen[bytes]":
    """Starts a worker with these settings, as for `--set`, and these variables added to this process's environment.

    The worker drains when this process dies, even by kill -9 (Linux). Its output goes to `log`, else to this process's.
    """
    return subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", "stream", *arguments(stage, assignments)],
        env=os.environ | variables,
        stdout=log,
        stderr=log,
        preexec_fn=_end_with_parent,  # noqa: PLW1509
    )


@asynccontextmanager
async def workers(assignments: Mapping[StageName, Mapping[str, str]]) -> AsyncIterator[Callable[[], None]]:
    """Runs a worker of each stage, with these settings, while the context lasts.

    Yields a check. If a worker has ended by itself, the check raises `Outage` with the last line of the worker's log.
    """
    running: dict[StageName, subprocess.Popen[bytes]] = {}
    with TemporaryDirectory(prefix="stream-logs-") as folder:
        logs = {stage: Path(folder) / f"{stage}.log" for stage in assignments}

        def check() -> None:
            for stage, process in running.items():
                if process.poll() is not None:
                    last = logs[stage].read_text(errors="replace").strip().splitlines()[-1:]
                    raise Outage(f"the {stage} worker ended with code {process.returncode}: {' '.join(last)}")

        try:
            for stage, own in assignments.items():
                with logs[stage].open("wb") as log:
                    running[stage] = worker(stage, own, {}, log)
            yield check
        finally:
            for process in running.values():
                process.terminate()
            for process in running.values():
                await asyncio.to_thread(process.wait)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
