"""If these fail, `docker compose --profile cpu up` does not start, loses chunks, or leaves something behind.

`make test-compose` runs them, with a Docker engine and a network of their own: the ports, the containers and the rules
of this machine's firewall stay as they are. The servers are the jars of `make demo` in images with the entry points of
the official ones (`servers/`). The image for SPLADE is the target `cuda`, whose PyTorch comes from PyPI, unless
TORCH_INDEX names an index of PyTorch's CPU wheels. The first run downloads 3 GB; `.local/compose` keeps the images and
what they are built from, 19 GB.
"""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import base_image
import pytest
from support import wait_until

from stream.local import java, kafka, neo4j, opensearch
from stream.local.profile import Profile

ROOT = Path(__file__).parent.parent.parent
HOME = ROOT / ".local" / "compose"
COMPOSE = ROOT / ".local" / "docker-compose" / "usr/libexec/docker/cli-plugins/docker-compose"
PROGRAMS = ("dockerd", "docker", "iptables", "slirp4netns", "debootstrap", "unshare", "nsenter", "curl", "mvn")
PASSWORD = """a/b "c" 'd' $e %f"""
SECONDS = 900  # that a start or a check may take: a machine may be slow and busy

pytestmark = [
    pytest.mark.timeout(3600),  # the first test waits for the downloads
    pytest.mark.skipif(
        os.geteuid() != 0 or not all(map(shutil.which, PROGRAMS)),
        reason="needs root, curl, Maven, and: apt-get install docker.io iptables slirp4netns debootstrap",
    ),
]


class Engine:
    """A Docker engine in a network namespace, from which slirp4netns is the way out."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self.environment = {"DOCKER_HOST": f"unix://{folder}/docker.sock", "DOCKER_CONFIG": str(folder)}
        self._inside = ["nsenter", f"--net=/proc/{process.pid}/ns/net"]

    def docker(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run("docker", *arguments, environment=self.environment)

    def curl(self, *arguments: str) -> str:
        """From the machine on which the engine publishes its ports."""
        return run(*self._inside, "curl", "-fsS", *arguments).stdout


def run(
    *command: str | Path, environment: Mapping[str, str] | None = None, **keywords: Any
) -> subprocess.CompletedProcess[str]:
    variables = os.environ | (environment or {})
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=variables, **keywords)
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Holds a gigabyte, so it is deleted at once."""
    made = tmp_path_factory.mktemp("compose")
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    HOME.mkdir(parents=True, exist_ok=True)
    options = [
        *(f"--data-root={HOME}", f"--exec-root={folder}/exec", f"--pidfile={folder}/dockerd.pid"),
        *(f"--host=unix://{folder}/docker.sock", "--dns=10.0.2.3"),
    ]
    start = f"mount --make-rprivate /; ip link set lo up; exec dockerd {' '.join(options)}"
    with ExitStack() as stack:
        log = stack.enter_context((folder / "dockerd.log").open("wb"))
        daemon = subprocess.Popen(["unshare", "--net", "--mount", "bash", "-c", start], stdout=log, stderr=log)
        stack.callback(end, daemon)
        made = Engine(folder, daemon)
        wait_until(lambda: (folder / "docker.sock").exists() or daemon.poll() is not None)
        assert daemon.poll() is None, (folder / "dockerd.log").read_text()[-2000:]
        way_out = ["slirp4netns", "--configure", "--mtu=65520", "--disable-host-loopback", str(daemon.pid), "tap0"]
        stack.callback(end, subprocess.Popen(way_out, stdout=log, stderr=log))
        wait_until(lambda: answers(made))
        yield made


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(120)


def answers(engine: Engine) -> bool:
    with suppress(AssertionError):
        return bool(engine.docker("version").stdout)
    return False


@pytest.fixture(scope="module")
def base(engine: Engine, folder: Path) -> str:
    """The name of the base image."""
    if not engine.docker("images", "--quiet", base_image.NAME).stdout:
        base_image.make(folder / "root")
        changes = [f"--change=ENV {name}={value}" for name, value in base_image.ENVIRONMENT.items()]
        run("tar", "-C", folder / "root", "-cf", folder / "root.tar", ".")
        engine.docker("import", *changes, f"{folder}/root.tar", base_image.NAME)
    return base_image.NAME


@pytest.fixture(scope="module")
def servers(folder: Path) -> Path:
    """What the servers' images are built from."""
    profile = Profile(folder / "profile", artifacts=ROOT / ".local" / "artifacts")
    profile.make()
    shutil.copytree(Path(__file__).parent / "servers", folder / "servers")
    for server, files in ((kafka, "lib"), (neo4j, "lib"), (opensearch, ".")):
        server.install(profile, print)
        pom = opensearch.pom() if server is opensearch else server.NAME
        shutil.copytree(java.distribution(profile, pom) / files, folder / "servers" / server.NAME)
    return folder / "servers"


Compose = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def compose(engine: Engine, base: str, servers: Path, folder: Path) -> Iterator[Compose]:
    """Runs docker compose with the profile cpu. The project's folder is what git has of this tree."""
    run("git", "clone", "-q", ROOT, folder / "source")
    files = (folder / "source/compose/docker-compose.yml", Path(__file__).parent / "servers.yml")
    options = [*(f"--file={file}" for file in files), f"--env-file={files[0].parent / 'cpu.env'}", "--profile=cpu"]
    variables = {"NEO4J_PASSWORD": PASSWORD, "SERVERS": str(servers), "BASE": base}
    if "TORCH_INDEX" not in os.environ:
        variables["TARGET"] = "cuda"

    def call(*arguments: str, **keywords: Any) -> subprocess.CompletedProcess[str]:
        return run(COMPOSE, *options, *arguments, environment=engine.environment | variables, **keywords)

    call("down", "--volumes")  # what a killed run left
    try:
        yield call
    finally:
        call("down", "--volumes")
        engine.docker("image", "prune", "--force")  # what this build replaced


@pytest.fixture(scope="module")
def key(engine: Engine, compose: Compose, folder: Path) -> str:
    """The key of a caller of the search service."""
    compose("build")
    made = engine.docker("run", "--rm", "chunk-stream:lean", "keys", "new", "me")
    (folder / "source/compose/keys/search").write_text(made.stdout)
    return made.stderr.split()[-1]


@pytest.fixture(scope="module")
def up(compose: Compose, key: str) -> Compose:
    start(compose)
    return compose


def start(compose: Compose) -> None:
    compose("up", "--wait", "--wait-timeout", str(SECONDS))


def publish(compose: Compose, *names: str) -> None:
    lines = [json.dumps({"chunk_id": name, "doc_id": "d", "text": f"sockets are files, says {name}"}) for name in names]
    compose("exec", "-T", "embed", "stream", "publish", "-", input="\n".join(lines))


def verify(compose: Compose) -> None:
    compose("exec", "-T", "index", "stream", "verify", f"--wait={SECONDS}")


def found(engine: Engine, key: str) -> set[str]:
    """The ids that a hybrid search finds, with both models."""
    request = ["--json", json.dumps({"query": "are sockets files?", "k": 50, "mode": "hybrid"})]
    answer = engine.curl("-H", f"Authorization: Bearer {key}", *request, "http://127.0.0.1:8080/search")
    return {hit["chunk_id"] for hit in json.loads(answer)["hits"]}


def test_published_chunks_are_found_over_http_with_a_key(engine, up, key):
    publish(up, "a", "b")
    verify(up)
    assert found(engine, key) == {"a", "b"}


def test_a_worker_that_is_killed_is_started_again_by_the_engine_and_loses_nothing(engine, up, key):
    container = up("ps", "--quiet", "embed").stdout.strip()
    (state,) = json.loads(engine.docker("inspect", container).stdout)
    publish(up, "c")
    os.kill(state["State"]["Pid"], signal.SIGKILL)
    wait_until(lambda: json.loads(engine.docker("inspect", container).stdout)[0]["RestartCount"] == 1)
    publish(up, "d")
    verify(up)
    assert found(engine, key) == {"a", "b", "c", "d"}


def test_what_was_stored_is_there_after_down_and_up(engine, up, key):
    before = found(engine, key)
    up("down")
    assert not engine.docker("ps", "--all", "--quiet").stdout
    start(up)
    verify(up)
    assert found(engine, key) == before


def test_the_password_of_neo4j_may_hold_any_character_and_docker_inspect_does_not_show_it(engine, up):
    containers = up("ps", "--all", "--quiet").stdout.split()
    shown = engine.docker("inspect", *containers).stdout
    assert "EXTENSION_SCRIPT" in shown
    assert json.dumps(PASSWORD)[1:-1] not in shown


def test_every_volume_has_a_name(engine, up):
    volumes = engine.docker("volume", "ls", "--format={{.Name}}").stdout.split()
    assert volumes
    assert [name for name in volumes if not name.startswith("chunk-stream_")] == []


@pytest.mark.parametrize("command", ["status", "doctor", "dlq ls", "topics create", "search --mode=dense x"])
def test_the_lean_image_runs_what_needs_no_splade(up, command):
    up("exec", "-T", "index", "stream", *command.split())


@pytest.mark.parametrize("command", ["worker expand", "serve", "search x"])
def test_the_lean_image_says_in_one_sentence_what_it_cannot_run(up, command):
    with pytest.raises(AssertionError, match="needs PyTorch") as error:
        up("exec", "-T", "--env=STREAM_WEB_PORT=9999", "index", "stream", *command.split())
    assert "Traceback" not in str(error.value)


def test_the_image_for_gpus_can_compile_what_triton_needs(engine, up):
    if "TORCH_INDEX" in os.environ:
        pytest.skip("the target cpu has no compiler")
    source = "'#include <stdlib.h>\\nint launch(void) { return abs(-1); }'"
    command = f"printf {source} | gcc -O3 -shared -fPIC -x c - -o launcher.so"
    engine.docker("run", "--rm", "--entrypoint=sh", "chunk-stream:cuda", "-c", command)


def test_down_with_its_volumes_leaves_nothing_behind(engine, up):
    up("down", "--volumes")
    assert not engine.docker("ps", "--all", "--quiet").stdout
    assert not engine.docker("volume", "ls", "--quiet").stdout
