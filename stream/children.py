"""Processes that end with the one that has started them."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import IO

from stream.config import StageName

PR_SET_PDEATHSIG = 1  # prctl(2)


def worker(
    stage: StageName, assignments: Mapping[str, str], variables: Mapping[str, str], log: IO[bytes] | None = None
) -> "subprocess.Popen[bytes]":
    """A worker with these settings, as `--set` takes them, and these environment variables beside this process's own.

    It drains when this process dies, by kill -9 too (Linux). What it says goes to `log`, or where ours goes.
    """
    options = [f"--set={name}={value}" for name, value in assignments.items()]
    return subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", "stream", *options, "worker", stage],
        env=os.environ | variables,
        stdout=log,
        stderr=log,
        preexec_fn=_end_with_parent,  # noqa: PLW1509
    )


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
