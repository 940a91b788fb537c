"""If these fail, the local servers do not start, do not restart after a crash, or leave processes running."""

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import which

import httpx
import pytest
import yaml
from conftest import programs
from ports import free_ports
from support import wait_until

from stream.errors import ConfigurationError, Outage
from stream.local import java, servers, supervisor
from stream.local.profile import Profile

ROOT = Path(__file__).parents[2]
ARTIFACTS = ROOT / ".local" / "artifacts"
COMPOSE = ROOT / "compose" / "docker-compose.yml"


def tool(folder: Path, name: str, script: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    return folder


# Missing programs are named in one sentence


@pytest.mark.parametrize("modules", ["java.base@11.0.2", ""])
def test_a_java_that_does_not_fit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, modules: str) -> None:
    tool(tmp_path / "bin", "java", f"echo {modules}")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"Java 17 or newer.*is older.*apt install.*docker compose"):
        servers.servers(Profile(tmp_path))


@pytest.mark.parametrize(("version", "opensearch"), [(17, "2"), (23, "2"), (24, "3"), (25, "3")])
def test_opensearch_is_of_a_version_that_runs_on_the_java_of_java_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int, opensearch: str
) -> None:
    tool(tmp_path / "bin", "java", f"echo java.base@{version}.0.1")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    command = servers.servers(Profile(tmp_path))[-1].command
    assert command[0] == f"{tmp_path}/bin/java"
    (home,) = (word for word in command if word.startswith("-Dopensearch.path.home="))
    assert f"/opensearch-{opensearch}." in home


@pytest.mark.parametrize(
    ("variable", "version", "wrong"),
    [
        ("STREAM_LOCAL_OPENSEARCH_VERSION", "3.8.0", "OpenSearch 3 needs 21 or newer.*is 17"),
        ("STREAM_LOCAL_OPENSEARCH_VERSION", "1.3.20", "others are not supported"),
        ("STREAM_LOCAL_KAFKA_VERSION", "../4.4.0", "must be a version like"),
    ],
)
def test_a_version_that_cannot_run_is_named(
    tmp_path: Path, java_17: Path, monkeypatch: pytest.MonkeyPatch, variable: str, version: str, wrong: str
) -> None:
    monkeypatch.setenv(variable, version)
    with pytest.raises(ConfigurationError, match=wrong):
        servers.servers(Profile(tmp_path))


def test_a_missing_java_is_a_sentence_with_both_ways_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"no java on PATH.*apt install openjdk.*docker compose"):
        servers.install(Profile(tmp_path))
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigurationError, match=r"JAVA_HOME \(.*nowhere\) has no bin/java"):
        servers.install(Profile(tmp_path))


@pytest.fixture
def java_17(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with system tools and a java that fits, in a folder where tests add a mvn."""
    folder = tool(tmp_path / "bin", "java", "echo java.base@17.0.15")
    for name in ("sh", "sleep", "mkdir"):
        (folder / name).symlink_to(which(name) or "")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(folder))
    return folder


def test_a_missing_maven_is_a_sentence(tmp_path: Path, java_17: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no mvn on PATH.*apt install.*maven"):
        servers.install(Profile(tmp_path / "home"))


HOME = 'for word; do case $word in -Dhome=*) home=${word#-Dhome=};; esac; done; mkdir -p "$home/lib"'


def test_an_install_that_fails_does_not_count(tmp_path: Path, java_17: Path) -> None:
    profile = Profile(tmp_path / "home")
    tool(java_17, "mvn", f"{HOME}; echo half > $home/lib/half.jar; echo no route to the repository; exit 1")
    with pytest.raises(Outage, match=r"kafka-.* failed[\s\S]*no route to the repository"):
        java.assemble(profile, "kafka", print)
    tool(java_17, "mvn", f"{HOME}; echo whole > $home/lib/whole.jar")
    folder = java.assemble(profile, "kafka", print)
    assert [jar.name for jar in (folder / "lib").iterdir()] == ["whole.jar"]


def test_two_installs_at_once_share_one_download(tmp_path: Path, java_17: Path) -> None:
    profile = Profile(tmp_path / "home")
    tool(java_17, "mvn", f"echo call >> {tmp_path}/calls; sleep 0.5; {HOME}")
    with ThreadPoolExecutor(2) as pool:
        folders = set(pool.map(lambda _: java.assemble(profile, "kafka", print), range(2)))
    assert [folder.exists() for folder in folders] == [True]
    assert (tmp_path / "calls").read_text() == "call\n"


# Docker runs the same


def test_docker_runs_the_same_versions() -> None:
    for name, service in yaml.safe_load(COMPOSE.read_text())["services"].items():
        if "profiles" not in service:  # the services without a profile are those of the local profile
            version = java.version("opensearch-2" if name == "opensearch" else name)
            assert service["image"].split(":")[1].removesuffix("-community") == version


# The real servers


@pytest.fixture
def profile(profile: Profile | None) -> Profile:
    """The servers of all tests, which run in a folder that only its owner may enter, as a clone in a home folder is."""
    if profile is None:
        pytest.skip("a server of somebody else's is not killed: unset STREAM_TEST_ENV_FILE")
    return profile


def pids(profile: Profile) -> list[int | None]:
    return [status.pid for status in supervisor.status(profile, servers.servers(profile))]


@pytest.mark.servers
def test_all_three_are_ready_and_a_second_up_changes_nothing(profile: Profile) -> None:
    statuses = supervisor.status(profile, servers.servers(profile))
    assert {(s.name, s.state, s.ready) for s in statuses} >= {
        ("kafka", "RUNNING", True),
        ("neo4j", "RUNNING", True),
        ("opensearch", "RUNNING", True),
    }
    before = pids(profile)
    servers.install(profile)
    supervisor.up(profile, programs(profile))
    assert pids(profile) == before


@pytest.mark.servers
def test_a_typo_makes_no_index(profile: Profile) -> None:
    url = profile.environment()["STREAM_OPENSEARCH_URL"]
    answer = httpx.put(f"{url}/chunsk/_doc/1", json={}, trust_env=False)
    assert answer.status_code == 404


@pytest.mark.servers
def test_a_killed_kafka_comes_back_by_itself(profile: Profile) -> None:
    kafka = servers.servers(profile)[0]
    before = pids(profile)[0]
    supervisor.kill(profile, "kafka", signal.SIGKILL)
    wait_until(lambda: pids(profile)[0] not in (None, before))
    wait_until(kafka.ready)


@pytest.mark.servers
def test_another_home_on_the_same_ports_is_told_which(profile: Profile, tmp_path: Path) -> None:
    second = Profile(tmp_path, ARTIFACTS, kafka_port=profile.kafka_port)
    with pytest.raises(ConfigurationError, match=f"port {profile.kafka_port}.*STREAM_LOCAL_KAFKA_PORT"):
        supervisor.up(second, servers.servers(second)[:1])
    supervisor.down(second)


@pytest.mark.servers
def test_down_leaves_no_process(tmp_path: Path) -> None:
    kafka, controller = free_ports(2)
    second = Profile(tmp_path, ARTIFACTS, kafka_port=kafka, kafka_controller_port=controller)
    servers.install(second)
    supervisor.up(second, servers.servers(second)[:1])
    running = [pid for pid in pids(second) if pid]
    assert len(running) == 1
    supervisor.down(second)
    assert [Path(f"/proc/{pid}").exists() for pid in running] == [False]
    supervisor.down(second)
