"""A worker for each GPU of this machine, as processes that share nothing but the consumer group."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping

from stream import children, signals
from stream.config import Settings, StageName
from stream.errors import GpuRequired, Outage
from stream.worker.run import WEB_PORTS

PORTS_APART = 100  # between the web ports of two GPUs' workers: the stages' own lie between
VARIABLE = "CUDA_VISIBLE_DEVICES"


def visible() -> list[str]:
    """Names of the GPUs that CUDA may use: those of `CUDA_VISIBLE_DEVICES`, or all. Raises `GpuRequired`."""
    if named := os.environ.get(VARIABLE):
        return named.split(",")
    program = shutil.which("nvidia-smi")
    if not program:
        raise GpuRequired("there is no nvidia-smi to say which GPUs there are: install NVIDIA's driver")
    asked = subprocess.run(  # noqa: S603
        [program, "--query-gpu=uuid", "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    if asked.returncode or not asked.stdout.strip():
        raise GpuRequired(f"nvidia-smi finds no GPU: {(asked.stderr or asked.stdout).strip() or 'it says nothing'}")
    return asked.stdout.split()


def run(stage: StageName, settings: Settings, assignments: Mapping[str, str], gpus: list[str]) -> int:
    """Runs a worker on each GPU until SIGTERM or SIGINT, or until one ends; then the others drain.

    Returns the exit code of the first that ended, 75 if a signal ended it. Worker n has the instance's name with
    `-gpu<n>` behind it, and its web port is `PORTS_APART`·n above the first one's.
    """
    port = WEB_PORTS[stage] if settings.web_port is None else settings.web_port
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
    if stopping:  # not every worker was there when the signal came
        stop()
    while all(worker.poll() is None for worker in workers):
        time.sleep(0.2)
    first = next(worker for worker in workers if worker.returncode is not None)
    asked = stopping
    stop()
    for worker in workers:
        worker.wait()
    if asked and first.returncode == -signal.SIGTERM:  # it had no handler yet
        return 0
    return first.returncode if first.returncode >= 0 else Outage.exit_code
