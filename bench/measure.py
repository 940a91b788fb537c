"""Helpers of the benchmarks: memory of a process, names of devices, and result files (JSON and SVG)."""

import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import orjson
from matplotlib.axes import Axes
from matplotlib.figure import Figure

MIB = 2**20

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `stream` does; before PyTorch is imported


def memory(pid: int | str = "self", what: str = "VmRSS") -> int:
    """Memory of a process in bytes: resident now (`VmRSS`) or peak (`VmHWM`). Linux only."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))


def device() -> str:
    """Describes the machine: cores, total memory, Python version."""
    memory_kib = int(Path("/proc/meminfo").read_text().split()[1])
    cores = sum(line.startswith("processor") for line in Path("/proc/cpuinfo").read_text().splitlines())
    return f"{cores} cores, {memory_kib / 2**20:.0f} GiB, Python {platform.python_version()}"


def nvidia_smi(query: str, *options: str) -> list[str]:
    """One line of nvidia-smi's answer for each GPU; empty if there is no nvidia-smi."""
    program = shutil.which("nvidia-smi")
    if not program:
        return []
    asked = [program, *options, f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    return subprocess.run(asked, capture_output=True, check=True, text=True).stdout.splitlines()


def save(path: Path, results: dict[str, Any], draw: Callable[[Axes], None]) -> None:
    """Writes `path`.json, and `path`.svg with `draw`. The same results give the same files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2) + b"\n")
    with mpl.rc_context({"svg.hashsalt": path.name}):
        figure = Figure(figsize=(8, 4), layout="constrained")
        draw(figure.subplots())
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
