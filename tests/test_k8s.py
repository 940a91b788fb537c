"""If these fail, `kubectl apply` refuses a file, or vLLM is deployed in another way than docker compose does it."""

from pathlib import Path

import kubernetes_validate
import pytest
import yaml

COMPOSE = Path(__file__).parent.parent / "compose"
FILES = sorted((COMPOSE / "k8s").glob("*.yaml"))
FOREIGN = ("kustomize.config.k8s.io/", "keda.sh/")  # not in the API of Kubernetes itself


def documents(*files: Path) -> list[dict]:
    return [document for file in files for document in yaml.safe_load_all(file.read_text())]


def one(kind: str) -> dict:
    (found,) = [document for document in documents(*FILES) if document["kind"] == kind]
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_kubernetes_knows_every_field(file):
    for document in documents(file):
        if not document["apiVersion"].startswith(FOREIGN):
            kubernetes_validate.validate(document, "1.31", strict=True)


def test_a_field_that_kubernetes_does_not_know_is_found():
    broken = one("Deployment")
    broken["spec"]["replica"] = 2
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.31", strict=True)


def test_both_autoscalers_look_at_the_deployment_and_the_rest_at_its_pods():
    deployment = one("Deployment")
    name, labels = deployment["metadata"]["name"], deployment["spec"]["template"]["metadata"]["labels"]
    assert one("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"] == name
    assert one("ScaledObject")["spec"]["scaleTargetRef"]["name"] == name
    selectors = [deployment["spec"]["selector"]["matchLabels"], one("Service")["spec"]["selector"]]
    for selector in [*selectors, one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"]]:
        assert selector.items() <= labels.items()


def test_vllm_runs_as_docker_compose_runs_it():
    service = yaml.safe_load((COMPOSE / "docker-compose.yml").read_text())["services"]["vllm"]
    (container,) = one("Deployment")["spec"]["template"]["spec"]["containers"]
    assert (container["image"], container["args"]) == (service["image"], service["command"])


def test_no_secret_lies_in_a_file():
    for document in documents(*FILES):
        assert document["kind"] != "Secret"
        assert "password" not in str(document).lower()
