"""Runs one worker process for each GPU of this machine; the processes share only the consumer group."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping

from stream import children, signals
from stream.config import Settings, StageName
from stream.errors import GpuRequired, Outage
from stream.worker.ports import web_port

PORTS_APART = 100  # between the web ports of two GPUs' workers; the stages' ports fit in between
VARIABLE = "CUDA_VISIBLE_DEVICES"


def visible() -> list[str]:
    """The GPUs that CUDA may use: those of `CUDA_VISIBLE_DEVICES`, or all. Raises `GpuRequired`."""
    if named := os.environ.get(VARIABLE):
        return named.split(",")
    program = shutil.which("nvidia-smi")
    if not program:
        raise GpuRequired("there is no nvidia-smi, which lists the GPUs: install NVIDIA's driver")
    asked = subprocess.run(  # noqa: S603
        [program, "--query-gpu=uuid", "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    if asked.returncode or not asked.stdout.strip():
        raise GpuRequired(f"nvidia-smi finds no GPU: {(asked.stderr or asked.stdout).strip() or 'it printed nothing'}")
    return asked.stdout.split()


def run(stage: StageName, settings: Settings, assignments: Mapping[str, str], gpus: list[str]) -> int:
    """Runs a worker on each GPU until SIGTERM or SIGINT, or until one ends; then the others drain.

    Returns the exit code of the first worker that ended, or 75 if a signal ended it. Worker n has the name of the
    instance with the suffix `-gpu<n>`, and its web port is `PORTS_APART`·n above the first worker's.
    """
    port = web_port(stage, settings)
    workers: list[subprocess.Popen[bytes]] = []
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True
        for worker in workers:
            worker.terminate()

    for number in signals.SIGNALS:
        signal.signal(number, stop)
    for n, gpu in enumerate(gpus):
        own = {"instance": f"{settings.instance}-gpu{n}", "web_port": str(port and port + PORTS_APART * n)}
        workers.append(children.worker(stage, {**assignments, **own}, {VARIABLE: gpu}))
    if stopping:  # the signal came before all workers were started
        stop()
    while all(worker.poll() is None for worker in workers):
        time.sleep(0.2)
    first = next(worker for worker in workers if worker.returncode is not None)
    asked = stopping
    stop()
    for worker in workers:
        worker.wait()
    if asked and first.returncode == -signal.SIGTERM:  # the worker had no handler yet
        return 0
    return first.returncode if first.returncode >= 0 else Outage.exit_code
