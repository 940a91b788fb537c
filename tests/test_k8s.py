"""If these fail, `kubectl apply` rejects a file, or starts services that cannot work or differ from compose's."""

import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from stream import config, metrics
from stream.config import STAGES, Settings
from stream.kafka.topics import group, source
from stream.serve.service import require_private
from stream.worker.ports import WEB_PORTS

COMPOSE = Path(__file__).parent.parent / "compose"
K8S = COMPOSE / "k8s"
SETTINGS = {f"STREAM_{name.upper()}" for name in Settings.model_fields}
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
    for kind in ("Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler"):
        assert (kind, "search") in names
    for document in objects:
        workload = document["kind"] in ("StatefulSet", "Deployment")
        for volume in document["spec"]["template"]["spec"]["volumes"] if workload else ():
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            assert claim is None or ("PersistentVolumeClaim", claim) in names


def test_with_gpus_expand_has_one_and_all_workers_insist():
    objects = {(document["kind"], document["metadata"]["name"]): document for document in built("gpu")}
    assert objects["ConfigMap", "stream-settings"]["data"]["REQUIRE_GPU"] == "1"
    for stage in STAGES:
        (container,) = objects["StatefulSet", stage]["spec"]["template"]["spec"]["containers"]
        assert container["image"] == ("chunk-stream:cuda" if stage == "expand" else "chunk-stream:lean")
        assert container["resources"]["limits"].get("nvidia.com/gpu") == (1 if stage == "expand" else None)
    (container,) = objects["Deployment", "search"]["spec"]["template"]["spec"]["containers"]
    assert {"name": "REQUIRE_GPU", "value": "0"} in container["env"]
    assert container["image"] == "chunk-stream:cuda"


def test_what_loads_splade_has_pytorch_and_nothing_else_has():
    for name, pod in pods().items():
        for container in pod["spec"]["containers"]:
            image, _, target = container["image"].partition(":")
            if image == "chunk-stream":
                assert target == ("cpu" if name in ("expand", "search") else "lean"), name


def test_every_object_that_looks_for_pods_finds_its_own():
    for kind, name in [("StatefulSet", stage) for stage in STAGES] + [("Deployment", "vllm"), ("Deployment", "search")]:
        owner = one(kind, name)
        labels = owner["spec"]["template"]["metadata"]["labels"]
        selectors = [owner["spec"]["selector"]["matchLabels"], one("Service", name)["spec"]["selector"]]
        for selector in [*selectors, one("PodDisruptionBudget", name)["spec"]["selector"]["matchLabels"]]:
            assert selector.items() <= labels.items()
    for scaler, name in [("ScaledObject", name) for name in (*STAGES, "vllm")] + [
        ("HorizontalPodAutoscaler", name) for name in ("vllm", "search")
    ]:
        scaled = one(scaler, name)["spec"]["scaleTargetRef"]
        assert scaled["name"] == name
        assert one(scaled.get("kind", "Deployment"), name)
    policy = one("NetworkPolicy", "stream-workers")["spec"]["podSelector"]["matchLabels"]
    for stage in STAGES:
        assert policy.items() <= one("StatefulSet", stage)["spec"]["template"]["metadata"]["labels"].items()
    policy = one("NetworkPolicy", "stream-search")["spec"]["podSelector"]["matchLabels"]
    assert policy.items() <= one("Deployment", "search")["spec"]["template"]["metadata"]["labels"].items()


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


def test_the_search_service_is_told_its_settings_and_has_its_keys():
    pod = one("Deployment", "search")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["args"] == ["serve"]
    told = {variable["name"]: variable["value"] for variable in container["env"]}
    told |= {name: value for name, value in one("ConfigMap", "stream-settings")["data"].items() if name not in told}
    assert {name.removeprefix("STREAM_").lower() for name in told} <= set(Settings.model_fields)
    settings = config.only(told)
    require_private(settings.serve_host, settings.serve_keys is not None)
    assert container["ports"] == [{"name": "web", "containerPort": settings.serve_port}]
    (mounted,) = [mount for mount in container["volumeMounts"] if mount["name"] == "keys"]
    assert (mounted["mountPath"], "subPath" in mounted) == (
        str(settings.serve_keys.parent),
        False,
    )  # or it is never updated
    assert settings.require_gpu is False


def test_the_search_service_finishes_its_requests_before_it_is_killed():
    pod = one("Deployment", "search")["spec"]["template"]["spec"]
    _, seconds = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert pod["terminationGracePeriodSeconds"] > int(seconds) + Settings.model_construct().drain_timeout


def test_the_search_service_is_scaled_before_it_refuses_requests():
    deployment, scaler = one("Deployment", "search"), one("HorizontalPodAutoscaler", "search")["spec"]
    assert "replicas" not in deployment["spec"]
    assert scaler["minReplicas"] >= 2
    by_requests, by_cpu = scaler["metrics"]
    assert by_requests["pods"]["metric"]["name"] in {metric.name for metric in metrics.listed()}
    assert int(by_requests["pods"]["target"]["averageValue"]) < Settings.model_construct().serve_in_flight
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert by_cpu["resource"]["name"] in container["resources"]["requests"]  # the percentage is one of the request


def test_no_variable_that_kubernetes_makes_of_a_service_is_a_setting():
    """Pods get SEARCH_PORT=tcp://… for a Service `search`; one called `stream-serve` would set STREAM_SERVE_PORT."""
    names = [document["metadata"]["name"] for document in documents(*FILES) if document["kind"] == "Service"]
    assert "search" in names
    for name in names:
        assert not injected(name) & SETTINGS, name
    assert injected("stream-serve") & SETTINGS == {"STREAM_SERVE_PORT"}


def injected(service: str) -> set[str]:
    """The variables of a Service in each pod of its namespace that does not switch them off."""
    name = service.upper().replace("-", "_")
    return {f"{name}_SERVICE_HOST", f"{name}_SERVICE_PORT", f"{name}_SERVICE_PORT_WEB", f"{name}_PORT"}


def test_vllm_runs_as_docker_compose_runs_it():
    service = yaml.safe_load((COMPOSE / "docker-compose.yml").read_text())["services"]["vllm"]
    (container,) = one("Deployment", "vllm")["spec"]["template"]["spec"]["containers"]
    assert (container["image"], container["args"]) == (service["image"], service["command"])
    assert {one["name"]: one["value"] for one in container["env"]} == service["environment"]


def test_what_vllm_downloads_and_compiles_is_kept():
    (container,) = one("Deployment", "vllm")["spec"]["template"]["spec"]["containers"]
    (kept,) = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "models"]
    (cache,) = [one["value"] for one in container["env"] if one["name"] == "VLLM_CACHE_ROOT"]
    assert Path(kept) in Path(cache).parents


def pods() -> dict[str, dict]:
    """The specification of each workload's pods, by name."""
    owners = [one for one in documents(*FILES) if one["kind"] in ("Deployment", "StatefulSet", "Job")]
    assert len(owners) >= len(STAGES) + 3
    return {one["metadata"]["name"]: one["spec"]["template"] for one in owners}


@pytest.mark.parametrize("name", pods())
def test_a_pod_has_no_rights_that_it_does_not_need(name):
    pod = pods()[name]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("name", pods())
def test_a_pod_gets_no_variables_of_services(name):
    """vLLM reads VLLM_PORT as its port, and Kubernetes sets it to tcp://… for a Service `vllm`."""
    assert pods()[name]["spec"]["enableServiceLinks"] is False


@pytest.mark.parametrize("name", pods())
def test_a_network_policy_selects_each_pod(name):
    policies = [
        one["spec"]["podSelector"]["matchLabels"] for one in documents(*FILES) if one["kind"] == "NetworkPolicy"
    ]
    labels = pods()[name]["metadata"]["labels"]
    assert any(selected.items() <= labels.items() for selected in policies)


@pytest.mark.parametrize("name", pods())
def test_a_probe_waits_longer_for_an_answer_than_a_busy_server_takes(name):
    for container in pods()[name]["spec"]["containers"]:
        for kind in ("livenessProbe", "readinessProbe"):
            if probe := container.get(kind):
                assert probe["timeoutSeconds"] >= 5  # Kubernetes' default is one second


def test_what_a_scaler_decides_is_not_set_back_by_the_next_apply():
    scalers = [one for one in documents(*FILES) if one["kind"] in ("ScaledObject", "HorizontalPodAutoscaler")]
    for scaler in scalers:
        target = scaler["spec"]["scaleTargetRef"]
        assert "replicas" not in one(target.get("kind", "Deployment"), target["name"])["spec"]
        for trigger in scaler["spec"].get("triggers", ()):
            if trigger["type"] == "kafka":  # or KEDA sees no lag until the group has committed
                assert trigger["metadata"]["offsetResetPolicy"] == "earliest"


def test_pods_that_are_not_ready_do_not_block_the_drain_of_a_node():
    budgets = [one for one in documents(*FILES) if one["kind"] == "PodDisruptionBudget"]
    assert {budget["spec"].get("unhealthyPodEvictionPolicy") for budget in budgets} == {"AlwaysAllow"}


def test_the_topics_are_made():
    (container,) = one("Job", "topics")["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["topics", "create"]


def test_no_secret_lies_in_a_file():
    for document in documents(*FILES):
        assert document["kind"] != "Secret"
        assert "password" not in str(document).lower()
