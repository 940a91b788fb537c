"""If these fail, a team that copies the example for Go or Node from docs/producers.md publishes dead letters.

`make test-producers` runs them: the first build of the client for Go takes most of a minute of CPU time.
"""

import json
import shutil

import pytest
from conftest import ROOT
from examples import PARTITIONS, WRITTEN, example, finished, published, run

pytestmark = pytest.mark.servers

GO_MOD = """module publish

go 1.24

require github.com/twmb/franz-go v1.22.3
"""
GO = {
    "GOCACHE": str(ROOT / ".local" / "go" / "build"),
    "GOMODCACHE": str(ROOT / ".local" / "go" / "modules"),
    "GOFLAGS": "-mod=mod -modcacherw",  # `make clean` deletes the modules
}
VERSIONS = {True: "2.12.1", False: "1.35.0"}  # of @platformatic/kafka, with Node 22 or newer and with an older Node
NPM = {"npm_config_cache": str(ROOT / ".local" / "npm"), "npm_config_update_notifier": "false"}


@pytest.fixture
def variables(variables):
    return variables | {"STREAM_PARTITIONS": str(PARTITIONS)}


@pytest.mark.skipif(not shutil.which("go"), reason="Go is not installed")
async def test_go(flow, tmp_path):
    (tmp_path / "go.mod").write_text(GO_MOD)
    (tmp_path / "main.go").write_text(example("go", flow))
    fetched = await finished("go", "list", "-deps", ".", folder=tmp_path, **GO)
    if fetched.returncode:
        pytest.skip(f"the modules for Go cannot be fetched: {fetched.stderr}")
    await run("go", "vet", ".", folder=tmp_path, **GO)
    await run("go", "run", ".", folder=tmp_path, **GO)
    assert await published(flow) == WRITTEN


@pytest.mark.skipif(not (shutil.which("node") and shutil.which("npm")), reason="Node or npm is not installed")
async def test_node(flow, tmp_path):
    node = (await finished("node", "--version", folder=tmp_path)).stdout  # such as v22.1.0
    version = VERSIONS[int(node.removeprefix("v").partition(".")[0]) >= 22]
    package = {"type": "module", "dependencies": {"@platformatic/kafka": version}}
    (tmp_path / "package.json").write_text(json.dumps(package))
    (tmp_path / "publish.js").write_text(example("javascript", flow))
    fetched = await finished("npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", folder=tmp_path, **NPM)
    if fetched.returncode:
        pytest.skip(f"the packages for Node cannot be fetched: {fetched.stderr}")
    await run("node", "publish.js", folder=tmp_path)
    assert await published(flow) == WRITTEN
