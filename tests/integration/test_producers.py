"""If these fail, a team that copies an example from docs/producers.md publishes dead letters."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from support import read

from stream.config import Settings
from stream.records import Decoder, Rejected, Tombstone

pytestmark = pytest.mark.servers

PAGE = (ROOT / "docs" / "producers.md").read_text()
EXAMPLES = dict(re.findall(r"```(python|java|sh)\n(.*?)```", PAGE, re.DOTALL)[:3])
CLIENT = ROOT / ".local" / "artifacts"


def example(language: str, flow: Settings) -> str:
    """The page's example, with the address of Kafka and the name of the topic replaced."""
    return EXAMPLES[language].replace("localhost:9092", flow.kafka_servers).replace('"chunks"', f'"{flow.topic}"')


async def run(*command: str, folder: Path) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = await asyncio.to_thread(
        subprocess.run,
        command,
        cwd=folder,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


async def published(flow: Settings) -> dict[str, int]:
    """Versions by chunk, negative for a tombstone. Asserts that every record is valid."""
    found = [Decoder.of("chunk", flow)(record) for record in await read(flow, flow.topic)]
    assert not any(isinstance(one, Rejected) for one in found)
    return {t.chunk_id: -t.version for t in found if isinstance(t, Tombstone)} | {
        c["chunk_id"]: c["version"] for c in found if isinstance(c, dict)
    }


async def test_python(flow, tmp_path):
    (tmp_path / "publish.py").write_text(example("python", flow))
    await run(sys.executable, "publish.py", folder=tmp_path)
    assert await published(flow) == {"handbook#12": 7, "handbook#11": -8}


def compiles() -> bool:
    """Whether this Java has a compiler; a JRE has none."""
    java = shutil.which("java")
    modules = subprocess.run([java, "--list-modules"], capture_output=True, text=True, check=False) if java else None
    return bool(modules and "jdk.compiler@" in modules.stdout)


@pytest.mark.skipif(not compiles(), reason="this Java has no compiler")
async def test_java(flow, tmp_path):
    (tmp_path / "Publish.java").write_text(example("java", flow))
    (library,) = CLIENT.glob("kafka-*/lib")
    await run("java", "-cp", f"{library}/*", "Publish.java", folder=tmp_path)
    assert await published(flow) == {"handbook#12": 7, "handbook#11": -8}


async def test_a_shell(flow, tmp_path):
    await run("bash", "-c", example("sh", flow), folder=tmp_path)
    assert await published(flow) == {"handbook#12": 7}
