"""Processes of the product that start at once: a fork server has imported PyTorch, Faust and the rest for all of them.

Each is a process of its own, with the environment and the log that it is given. kill -9 ends it as it ends any other.
Tests of the start itself run `python -m stream` instead.
"""

import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import IO

from stream import children
from stream.config import StageName

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "pytest",
        "rich.progress",
        "rich.table",
        "typer",
        "stream.health.doctor",
        "stream.operate.purge",
        "stream.operate.redrive",
        "stream.operate.reindex",
        "stream.worker.run",
        "stream.stages.registry",
        "stream.models.splade",
        "transformers.models.bert.modeling_bert",
    ]
)


class Process:
    """What `subprocess.Popen` would be for `python SCRIPT ARGUMENTS`, or for `stream ARGUMENTS` without a script."""

    def __init__(
        self,
        arguments: Sequence[str | bytes],
        *,
        script: str | None = None,
        environment: Mapping[str, str],
        log: Path,
        errors: Path | None = None,
    ) -> None:
        """What the process prints is added to `log`; what it prints to standard error to `errors`, if given."""
        files = (str(log), str(errors or log))
        self._process: ForkServerProcess = CONTEXT.Process(
            target=_run, args=([*map(os.fsdecode, arguments)], script, dict(environment), files), daemon=True
        )
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while the process runs."""
        return self._process.exitcode

    def wait(self) -> int:
        """Waits for the end; the exit code."""
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def child(
    stage: StageName, assignments: Mapping[str, str], variables: Mapping[str, str], log: IO[bytes] | None = None
) -> Process:
    """In place of `stream.children.worker`."""
    path = Path(log.name) if log else Path(os.devnull)
    return Process(children.arguments(stage, assignments), environment=os.environ | variables, log=path)


def run(*arguments: str | bytes, script: str | None = None, **variables: str) -> SimpleNamespace:
    """Runs a process to its end: `code`, `out` and `err`."""
    with TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        code = Process(arguments, script=script, environment=os.environ | variables, log=out, errors=err).wait()
        return SimpleNamespace(code=code, out=out.read_text(), err=err.read_text())


def _run(arguments: list[str], script: str | None, environment: dict[str, str], files: tuple[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, name in zip((1, 2), files, strict=True):
        with Path(name).open("ab") as file:
            os.dup2(file.fileno(), descriptor)
    sys.argv = [script or "stream", *arguments]
    if script:
        runpy.run_path(script, run_name="__main__")
    else:
        runpy.run_module("stream", run_name="__main__")
