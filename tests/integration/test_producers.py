"""If these fail, a team that copies an example from docs/producers.md publishes dead letters."""

import shutil
import subprocess
import sys

import pytest
from conftest import ROOT
from examples import PARTITIONS, WRITTEN, example, published, run

from stream.local import java

pytestmark = pytest.mark.servers

CLIENT = ROOT / ".local" / "artifacts"


@pytest.fixture
def variables(variables):
    return variables | {"STREAM_PARTITIONS": str(PARTITIONS)}


async def test_python(flow, tmp_path):
    (tmp_path / "publish.py").write_text(example("python", flow))
    await run(sys.executable, "publish.py", folder=tmp_path)
    assert await published(flow) == WRITTEN


def compiles() -> bool:
    """Whether this Java has a compiler; a JRE has none."""
    java = shutil.which("java")
    modules = subprocess.run([java, "--list-modules"], capture_output=True, text=True, check=False) if java else None
    return bool(modules and "jdk.compiler@" in modules.stdout)


@pytest.mark.skipif(not compiles(), reason="this Java has no compiler")
async def test_java(flow, tmp_path):
    (tmp_path / "Publish.java").write_text(example("java", flow))
    library = CLIENT / f"kafka-{java.version('kafka')}" / "lib"
    await run("java", "-cp", f"{library}/*", "Publish.java", folder=tmp_path)
    assert await published(flow) == WRITTEN


async def test_a_shell(flow, tmp_path):
    await run("bash", "-c", example("sh", flow), folder=tmp_path)
    assert await published(flow) == {key: version for key, version in WRITTEN.items() if version > 0}
