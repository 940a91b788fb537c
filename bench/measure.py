"""What the benches share: processes and their memory, and a JSON with its picture."""

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


def memory(pid: int | str = "self", what: str = "VmRSS") -> int:
    """Bytes of a process: resident now (`VmRSS`) or at most so far (`VmHWM`). Linux only."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))


def device() -> str:
    """The machine in words, with what it has rather than what is free."""
    memory_kib = int(Path("/proc/meminfo").read_text().split()[1])
    cores = sum(line.startswith("processor") for line in Path("/proc/cpuinfo").read_text().splitlines())
    return f"{cores} cores, {memory_kib / 2**20:.0f} GiB, Python {platform.python_version()}"


def nvidia_smi(query: str, *options: str) -> list[str]:
    """What it says of each GPU; nothing where there is none."""
    program = shutil.which("nvidia-smi")
    if not program:
        return []
    asked = [program, *options, f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    return subprocess.run(asked, capture_output=True, check=True, text=True).stdout.splitlines()


def save(path: Path, results: dict[str, Any], draw: Callable[[Axes], None]) -> None:
    """Writes `path`.json, and `path`.svg as `draw` draws it: the same file for the same results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2) + b"\n")
    with mpl.rc_context({"svg.hashsalt": path.name}):
        figure = Figure(figsize=(8, 4), layout="constrained")
        draw(figure.subplots())
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
