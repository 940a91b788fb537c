"""If these fail, `kubectl apply` rejects a file, or starts services that cannot work or differ from compose's."""

import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from stream.config import STAGES, Settings
from stream.kafka.topics import group, source
from stream.worker.ports import WEB_PORTS

COMPOSE = Path(__file__).parent.parent / "compose"
K8S = COMPOSE / "k8s"
FOREIGN = ("kustomize.config.k8s.io/", "keda.sh/")  # not in the API of Kubernetes itself


def patches() -> set[Path]:
    """Files that are patches and not objects."""
    told = yaml.safe_load((K8S / "gpu" / "kustomization.yaml").read_text())
    return {K8S / "gpu" / patch["path"] for patch in told["patches"]}


FILES = sorted(set(K8S.rglob("*.yaml")) - patches())


def documents(*files: Path) -> list[dict]:
    return [document for file in files for document in yaml.safe_load_all(file.read_text())]


def one(kind: str, name: str) -> dict:
    (found,) = [d for d in documents(*FILES) if (d["kind"], d.get("metadata", {}).get("name")) == (kind, name)]
    return found


def built(folder: str) -> list[dict]:
    """The objects that `kubectl apply -k` applies."""
    kubectl = shutil.which("kubectl")
    if not kubectl:
        pytest.skip("needs kubectl")
    done = subprocess.run([kubectl, "kustomize", K8S / folder], check=True, capture_output=True, text=True)
    return list(yaml.safe_load_all(done.stdout))


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_kubernetes_knows_every_field(file):
    for document in documents(file):
        if not document["apiVersion"].startswith(FOREIGN):
            kubernetes_validate.validate(document, "1.31", strict=True)


def test_a_field_that_kubernetes_does_not_know_is_found():
    broken = one("Deployment", "vllm")
    broken["spec"]["replica"] = 2
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.31", strict=True)


@pytest.mark.parametrize("folder", ["base", "gpu"])
def test_what_is_applied_is_legal_and_whole(folder):
    objects = built(folder)
    for document in objects:
        kubernetes_validate.validate(document, "1.31", strict=True)
    names = {(document["kind"], document["metadata"]["name"]) for document in objects}
    for stage in STAGES:
        assert {("StatefulSet", stage), ("Service", stage), ("PodDisruptionBudget", stage)} <= names
    for document in objects:
        for volume in document["spec"]["template"]["spec"]["volumes"] if document["kind"] == "StatefulSet" else ():
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            assert claim is None or ("PersistentVolumeClaim", claim) in names


def test_with_gpus_expand_has_one_and_all_workers_insist():
    objects = {(document["kind"], document["metadata"]["name"]): document for document in built("gpu")}
    assert objects["ConfigMap", "stream-settings"]["data"]["REQUIRE_GPU"] == "1"
    for stage in STAGES:
        (container,) = objects["StatefulSet", stage]["spec"]["template"]["spec"]["containers"]
        assert container["image"] == "chunk-stream:cuda"
        assert container["resources"]["limits"].get("nvidia.com/gpu") == (1 if stage == "expand" else None)


def test_every_object_that_looks_for_pods_finds_its_own():
    for kind, name in [("StatefulSet", stage) for stage in STAGES] + [("Deployment", "vllm")]:
        owner = one(kind, name)
        labels = owner["spec"]["template"]["metadata"]["labels"]
        selectors = [owner["spec"]["selector"]["matchLabels"], one("Service", name)["spec"]["selector"]]
        for selector in [*selectors, one("PodDisruptionBudget", name)["spec"]["selector"]["matchLabels"]]:
            assert selector.items() <= labels.items()
        scaled = one("ScaledObject", name)["spec"]["scaleTargetRef"]
        assert (scaled.get("kind", "Deployment"), scaled["name"]) == (kind, name)
    assert one("HorizontalPodAutoscaler", "vllm")["spec"]["scaleTargetRef"]["name"] == "vllm"
    policy = one("NetworkPolicy", "stream-workers")["spec"]["podSelector"]["matchLabels"]
    for stage in STAGES:
        assert policy.items() <= one("StatefulSet", stage)["spec"]["template"]["metadata"]["labels"].items()


@pytest.mark.parametrize("stage", STAGES)
def test_a_worker_is_told_its_settings_and_asked_where_it_listens(stage):
    settings = Settings.model_construct()
    (container,) = one("StatefulSet", stage)["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["worker", stage]
    assert container["ports"] == [{"name": "web", "containerPort": WEB_PORTS[stage]}]
    told = [variable["name"] for variable in container["env"]] + list(one("ConfigMap", "stream-settings")["data"])
    assert {name.removeprefix("STREAM_").lower() for name in told} <= set(Settings.model_fields)
    (trigger,) = one("ScaledObject", stage)["spec"]["triggers"]
    assert trigger["metadata"]["topic"] == source(settings, stage)
    assert trigger["metadata"]["consumerGroup"] == group(settings, stage)
    assert one("ScaledObject", stage)["spec"]["maxReplicaCount"] <= settings.partitions


def test_vllm_runs_as_docker_compose_runs_it():
    service = yaml.safe_load((COMPOSE / "docker-compose.yml").read_text())["services"]["vllm"]
    (container,) = one("Deployment", "vllm")["spec"]["template"]["spec"]["containers"]
    assert (container["image"], container["args"]) == (service["image"], service["command"])


def test_no_secret_lies_in_a_file():
    for document in documents(*FILES):
        assert document["kind"] != "Secret"
        assert "password" not in str(document).lower()
