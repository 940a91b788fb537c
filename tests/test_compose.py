"""If these fail, `docker compose up` refuses the file, opens a port to the network, or starts what cannot work."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from compose_spec import PyCompose

from stream.config import STAGES, Settings
from stream.serve.service import require_private
from stream.worker.ports import WEB_PORTS

ROOT = Path(__file__).parent.parent
FILE = ROOT / "compose" / "docker-compose.yml"
DOCUMENT = yaml.safe_load(FILE.read_text())
SERVICES = DOCUMENT["services"]
VOLUMES = {  # of the official images: Docker makes a volume without a name for each that is not mounted
    "kafka": {"/etc/kafka/secrets", "/var/lib/kafka/data", "/mnt/shared/config"},
    "neo4j": {"/data", "/logs"},
    "prometheus": {"/prometheus"},
}
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def started(profile: str) -> dict[str, dict]:
    return {name: one for name, one in SERVICES.items() if profile in one.get("profiles", [profile])}


def test_the_file_is_what_the_compose_specification_says():
    check(interpolated(FILE.read_text()))


def test_a_field_that_the_specification_does_not_know_is_found():
    broken = interpolated(FILE.read_text())
    broken["services"]["kafka"]["heathcheck"] = broken["services"]["kafka"].pop("healthcheck")
    with pytest.raises(ValueError, match="heathcheck"):
        check(broken)


def interpolated(text: str) -> dict:
    """The file as docker compose reads it if only the password is set."""
    told = re.sub(r"\$\{\w+(?::-([^}]*)|:\?[^}]*)\}", lambda found: found[1] if found[1] is not None else "set", text)
    return yaml.safe_load(told)


def check(document: dict) -> None:
    PyCompose.from_yaml(yaml.safe_dump(document)).to_spec()


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_reached_from_this_machine_only_and_its_image_is_pinned(name):
    service = SERVICES[name]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    image, _, tag = service["image"].partition(":")
    assert image == "chunk-stream" or re.search(r"\d+\.\d+", tag)


@pytest.mark.parametrize("profile", ["gpu", "cpu"])
def test_each_profile_has_the_whole_flow_and_starts_it_in_order(profile):
    services = started(profile)
    ports = {port for service in services.values() for port in service.get("ports", ())}
    assert {f"127.0.0.1:{WEB_PORTS[stage]}:{WEB_PORTS[stage]}" for stage in STAGES} <= ports
    for service in services.values():
        for other, how in service.get("depends_on", {}).items():
            if other not in services:
                assert how.get("required") is False
            elif how["condition"] == "service_healthy":
                assert "healthcheck" in services[other]
            else:
                assert (how["condition"], "restart" in services[other]) == ("service_completed_successfully", False)


@pytest.mark.parametrize("profile", ["gpu", "cpu"])
def test_prometheus_asks_names_that_are_there(profile):
    told = yaml.safe_load((ROOT / "compose/prometheus/prometheus.yml").read_text())
    asked = {name for job in told["scrape_configs"] for one in job["dns_sd_configs"] for name in one["names"]}
    names = {
        name
        for service, one in started(profile).items()
        for name in [service, *one.get("networks", {}).get("default", {}).get("aliases", ())]
    }
    assert {*STAGES, "search"} <= names & asked
    assert asked - names == ({"vllm", "gpu-exporter"} if profile == "cpu" else set())


@pytest.mark.parametrize("profile", ["gpu", "cpu"])
def test_search_is_reached_from_this_machine_with_a_key(profile):
    search, defaults = started(profile)["search"], Settings.model_construct()
    assert search["command"] == ["serve"]
    assert search["ports"] == [f"127.0.0.1:{defaults.serve_port}:{defaults.serve_port}"]
    environment = search["environment"]
    require_private(environment["STREAM_SERVE_HOST"], "STREAM_SERVE_KEYS" in environment)
    mounted = [volume.split(":")[1] for volume in search["volumes"] if volume.startswith("./")]
    assert mounted == [str(Path(environment["STREAM_SERVE_KEYS"]).parent)]
    assert environment.keys() - SERVICES["index"]["environment"].keys() == {
        *("STREAM_SERVE_HOST", "STREAM_SERVE_KEYS", "HF_TOKEN")
    }


@pytest.mark.parametrize("name", [*STAGES, "search"])
def test_what_drains_at_its_end_has_the_time_to(name):
    minutes = int(SERVICES[name]["stop_grace_period"].removesuffix("m"))
    assert 60 * minutes > Settings.model_construct().drain_timeout


def test_what_is_set_in_the_containers_are_settings():
    for service in SERVICES.values():
        for name in service.get("environment", {}):
            if name.startswith("STREAM_") and name != "STREAM_SECRETS_DIR":
                assert name.removeprefix("STREAM_").lower() in Settings.model_fields


def test_every_volume_is_named():
    used = {
        volume.split(":")[0]
        for service in SERVICES.values()
        for volume in service.get("volumes", ())
        if not volume.startswith("./")
    }
    assert used == DOCUMENT["volumes"].keys()
    for service in SERVICES.values():
        for volume in service.get("volumes", ()):
            if volume.startswith("./"):
                assert (FILE.parent / volume.split(":")[0]).exists()


def test_no_container_leaves_volumes_without_a_name_behind():
    for name, wanted in VOLUMES.items():
        mounted = {volume.split(":")[1] for volume in SERVICES[name]["volumes"]} | {*SERVICES[name].get("tmpfs", ())}
        assert wanted <= mounted


@pytest.mark.parametrize("name", SERVICES)
def test_the_memory_of_a_service_has_a_limit_that_can_be_changed(name):
    assert re.fullmatch(r"\$\{\w+_MEMORY:-\d+[gm]\}", SERVICES[name]["mem_limit"])


@pytest.mark.parametrize("profile", ["gpu", "cpu"])
def test_one_service_builds_each_image(profile):
    ours = {name: one for name, one in started(profile).items() if one["image"].startswith("chunk-stream:")}
    assert {one["image"] for one in ours.values()} == {"chunk-stream:lean", "chunk-stream:${TARGET:-cuda}"}
    built = [(one["image"], one["build"]["target"]) for one in ours.values() if "build" in one]
    assert sorted(built) == [("chunk-stream:${TARGET:-cuda}", "${TARGET:-cuda}"), ("chunk-stream:lean", "lean")]
    for name, one in ours.items():
        loads_splade = name in ("expand", "expand-cpu", "splade-model", "search")
        assert (one["image"] != "chunk-stream:lean") == loads_splade
        assert one["pull_policy"] == "never"  # the name is of this machine, not of a registry


def test_a_health_check_starts_neither_a_jvm_nor_python():
    checks = {name: one["healthcheck"]["test"] for name, one in SERVICES.items() if "healthcheck" in one}
    assert {check[1] for check in checks.values()} == {"bash", "wget"}


def test_our_containers_have_no_rights_and_only_those_that_load_splade_have_the_token():
    ours = {name: one for name, one in SERVICES.items() if one["image"].startswith("chunk-stream:")}
    assert len(ours) > len(STAGES)
    for service in ours.values():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    assert {name for name, one in ours.items() if "HF_TOKEN" in one["environment"]} == {"expand", "search"}


def test_a_server_has_time_to_close_its_files():
    for name in ("kafka", "neo4j", "opensearch"):
        assert SERVICES[name]["stop_grace_period"] in ("1m", "2m")  # Docker kills after ten seconds


def test_no_password_lies_in_a_file_or_is_shown_by_docker_inspect():
    text = FILE.read_text() + DOCKERFILE + (ROOT / "compose/cpu.env").read_text()
    assert not any("NEO4J_PASSWORD" in str(one.get("environment")) for one in SERVICES.values())
    for name, value in re.findall(r"(?<![{\w])(\w*(?:PASSWORD|TOKEN|AUTH)\w*): *(\S.*)", text):
        assert "${" in value or value.startswith("#"), name


# The image


def test_the_image_has_both_targets_and_runs_without_rights():
    targets = re.findall(r"^FROM base AS (\S+)$", DOCKERFILE, re.MULTILINE)
    assert sorted(targets) == ["cpu", "cuda", "lean"]
    assert re.search(r"^USER \d+$", DOCKERFILE.split("AS base")[1], re.MULTILINE)


def test_what_the_image_copies_reaches_the_builder():
    """Everything that `pip install .` needs, and nothing secret or large."""
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    wanted = ["pyproject.toml", "README.md", "schemas", "stream"]
    assert sorted(allowed) == sorted([*wanted, "compose/requirements*.txt"])
    for name in wanted:
        assert (ROOT / name).exists()


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-cpu.txt", "requirements-lean.txt"])
def test_the_image_gets_the_versions_that_the_tests_ran_with(file):
    tested = pins(ROOT / "requirements.txt")
    assert {name: version for name, version in pins(ROOT / "compose" / file).items() if tested[name] != version} == {}


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-cpu.txt", "requirements-lean.txt"])
def test_the_image_has_what_the_service_and_its_traces_need(file):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = {re.split(r"[^a-z0-9-]", package)[0] for package in [*extras["serve"], *extras["traces"]]}
    assert wanted <= pins(ROOT / "compose" / file).keys()


def pins(file: Path) -> dict[str, set[str]]:
    """Versions by name; several if they depend on the version of Python."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([a-z0-9-]+)==(\S+)", file.read_text(), re.MULTILINE):
        found.setdefault(name, set()).add(version)
    return found
