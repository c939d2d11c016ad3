"""The Kubernetes overlays, rendered offline and held against Kubernetes' own schemas."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from app import keys
from app.settings import Settings

OVERLAYS = Path(__file__).parents[2] / "deploy" / "kubernetes" / "overlays"
KUBERNETES = "1.32"
WORKLOADS = {("Deployment", "api"), ("Deployment", "worker"), ("StatefulSet", "redis")}
PROBES = {"startupProbe", "readinessProbe", "livenessProbe"}

pytestmark = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="there is no kubectl here to render with"
)

Objects = dict[tuple[str, str], dict[str, Any]]


@pytest.fixture(scope="module", params=["cpu", "gpu", "s3"])
def overlay(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def objects(overlay: str) -> Objects:
    return render(overlay)


def render(overlay: str | Path) -> Objects:
    """The overlay's objects by kind and name."""
    rendered = subprocess.run(
        ["kubectl", "kustomize", OVERLAYS / overlay], capture_output=True, text=True, check=False
    )
    assert rendered.returncode == 0, rendered.stderr
    documents = yaml.safe_load_all(rendered.stdout)
    return {(each["kind"], each["metadata"]["name"]): each for each in documents}


def faults(document: dict[str, Any]) -> str | None:
    """What the schema says against an object, unknown fields included."""
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as fault:
        return str(fault.message)
    return None


def of_others(document: dict[str, Any]) -> bool:
    """Whether the kind is not Kubernetes' own, so that there is no schema of it here."""
    return str(document["apiVersion"]).split("/")[0] in ("keda.sh", "monitoring.coreos.com")


def pods(objects: Objects) -> Iterator[tuple[str, dict[str, Any]]]:
    for kind, name in WORKLOADS:
        yield name, objects[kind, name]["spec"]["template"]["spec"]


def test_every_object_is_as_kubernetes_wants_it(objects: Objects) -> None:
    known = {at: each for at, each in objects.items() if not of_others(each)}
    assert len(known) >= len(objects) - 2, "few kinds have no schema in Kubernetes"
    assert {at: faults(each) for at, each in known.items() if faults(each)} == {}


def test_everything_that_a_deployment_needs_is_there(objects: Objects) -> None:
    assert objects.keys() > WORKLOADS | {
        ("HorizontalPodAutoscaler", "api"), ("ScaledObject", "worker"),
        ("PodDisruptionBudget", "api"), ("PodDisruptionBudget", "worker"),
        ("NetworkPolicy", "nothing-else"), ("NetworkPolicy", "api"), ("NetworkPolicy", "redis"),
    }  # fmt: skip
    probes = {name: set(pod["containers"][0]) & PROBES for name, pod in pods(objects)}
    assert probes == {
        "api": {"readinessProbe", "livenessProbe"},
        "worker": {"startupProbe", "readinessProbe"},  # worker.yaml says why none of life
        "redis": {"readinessProbe", "livenessProbe"},
    }


@pytest.mark.parametrize(
    "path",
    [
        ("spec", "replica"),
        ("spec", "template", "spec", "securityContexts"),
        ("spec", "template", "spec", "containers", 0, "readynessProbe"),
    ],
)
def test_a_misspelt_field_is_caught(path: tuple[str | int, ...]) -> None:
    worker = deepcopy(render("cpu")["Deployment", "worker"])
    place: Any = worker
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = {}
    fault = faults(worker)
    assert fault is not None
    assert str(path[-1]) in fault


def test_workers_are_scaled_by_the_queues_that_rq_uses(objects: Objects) -> None:
    scaled = objects["ScaledObject", "worker"]["spec"]
    assert scaled["scaleTargetRef"] == {"name": "worker"}
    lists = [trigger["metadata"]["listName"] for trigger in scaled["triggers"]]
    assert lists == [keys.rq_queue(queue) for queue in keys.QUEUES]
    assert "replicas" not in objects["Deployment", "worker"]["spec"]  # KEDA's to set
    address = scaled["triggers"][0]["metadata"]["address"]
    assert address == f"redis.{objects['Service', 'redis']['metadata']['namespace']}.svc:6379"


def test_pods_meet_the_restricted_standard(objects: Objects) -> None:
    namespace = objects["Namespace", "avocat"]["metadata"]
    assert namespace["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for name, pod in pods(objects):
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in pod["containers"]:
            rights = container["securityContext"]
            assert rights["allowPrivilegeEscalation"] is False, name
            assert rights["readOnlyRootFilesystem"] is True, name
            assert rights["capabilities"] == {"drop": ["ALL"]}, name


def test_no_service_variable_is_taken_for_a_setting(objects: Objects) -> None:
    assert all(pod["enableServiceLinks"] is False for _, pod in pods(objects))


def test_secrets_are_named_and_not_held(objects: Objects) -> None:
    assert not [name for kind, name in objects if kind == "Secret"]
    for name in ("api", "worker"):
        (container,) = objects["Deployment", name]["spec"]["template"]["spec"]["containers"]
        sources = container["envFrom"]
        assert sources[-1] == {"secretRef": {"name": "avocat"}}  # the last one prevails


def test_a_bucket_takes_the_place_of_the_shared_volume() -> None:
    objects = render("s3")
    assert not [name for kind, name in objects if kind == "PersistentVolumeClaim"]
    for name in ("api", "worker"):
        volumes = objects["Deployment", name]["spec"]["template"]["spec"]["volumes"]
        assert {"name": "images", "emptyDir": {}} in volumes
    (settings,) = [each["data"] for (kind, _), each in objects.items() if kind == "ConfigMap"]
    assert Settings(storage=settings["AVOCAT_STORAGE"]).storage.startswith("s3://")
    fields = {f"AVOCAT_{name.upper()}" for name in Settings.model_fields}
    assert settings.keys() <= fields  # none is misspelt


def test_an_external_redis_may_go_with_every_overlay(tmp_path: Path) -> None:
    kubernetes = os.path.relpath(OVERLAYS.parent, tmp_path.resolve())
    (tmp_path / "kustomization.yaml").write_text(
        f"resources: [{kubernetes}/overlays/s3]\n"
        f"components: [{kubernetes}/components/external-redis]\n"
    )
    objects = render(tmp_path.resolve())
    assert not [
        name for kind, name in objects if name == "redis" and kind != "TriggerAuthentication"
    ]
    assert {at: faults(each) for at, each in objects.items() if not of_others(each)}.keys() > {
        ("Deployment", "api"), ("Deployment", "worker")
    }  # fmt: skip
    for trigger in objects["ScaledObject", "worker"]["spec"]["triggers"]:
        assert trigger["authenticationRef"] == {"name": "redis"}
        assert trigger["metadata"].keys() == {"enableTLS", "listName", "listLength"}
    parameters = objects["TriggerAuthentication", "redis"]["spec"]["secretTargetRef"]
    assert {each["name"] for each in parameters} == {"avocat"}


def test_the_overlay_of_the_documentation_is_rendered(tmp_path: Path) -> None:
    text = (OVERLAYS.parents[2] / "docs" / "deployment.md").read_text()
    shutil.copytree(OVERLAYS.parent, tmp_path / "kubernetes")
    mine = tmp_path / "kubernetes" / "overlays" / "mine"
    mine.mkdir()
    (mine / "kustomization.yaml").write_text(documented(text, "# deploy/kubernetes/overlays/mine"))
    objects = render(mine)
    for name in ("api", "worker"):
        (container,) = objects["Deployment", name]["spec"]["template"]["spec"]["containers"]
        assert container["image"] == f"registry.example/avocat-{name}:0.1.0"
    (settings,) = [each["data"] for (kind, _), each in objects.items() if kind == "ConfigMap"]
    assert settings["AVOCAT_RETENTION_S"] == "3600"


def documented(text: str, begin: str) -> str:
    """The block of YAML that begins so."""
    (block,) = [each for each in text.split("```yaml\n")[1:] if each.startswith(begin)]
    return block.split("```")[0]


def test_what_selects_pods_finds_them(objects: Objects) -> None:
    labels = [
        objects[at]["spec"]["template"]["metadata"]["labels"].items() for at in sorted(WORKLOADS)
    ]
    for (kind, name), each in objects.items():
        if kind in ("Service", "PodDisruptionBudget", "Deployment", "StatefulSet"):
            selector = each["spec"]["selector"]
            wanted = selector.get("matchLabels", selector)
            assert [wanted.items() <= found for found in labels].count(True) == 1, (kind, name)


def test_a_gpu_is_asked_for_where_one_is_meant() -> None:
    for overlay, gpus in (("cpu", None), ("gpu", 1)):
        pod = render(overlay)["Deployment", "worker"]["spec"]["template"]["spec"]
        limits = pod["containers"][0]["resources"]["limits"]
        assert limits.get("nvidia.com/gpu") == gpus


def test_metrics_are_scraped_where_they_are(tmp_path: Path) -> None:
    """The component for the Prometheus Operator, on top of an overlay."""
    relative = {
        what: os.path.relpath(OVERLAYS / where, tmp_path.resolve())
        for what, where in (("resources", "cpu"), ("components", "../components/monitoring"))
    }
    kustomization = {what: [path] for what, path in relative.items()}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    objects = render(str(tmp_path.resolve()))
    ours = [("ServiceMonitor", "api"), ("PodMonitor", "worker")]
    assert [faults(each) for at, each in objects.items() if at[0] == "NetworkPolicy"] == [None] * 4
    service, (endpoint,) = objects["Service", "api"], objects[ours[0]]["spec"]["endpoints"]
    assert objects[ours[0]]["spec"]["selector"]["matchLabels"].items() <= (
        service["metadata"]["labels"].items()
    )
    assert endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]
    job = service["metadata"]["labels"][objects[ours[0]]["spec"]["jobLabel"]]
    assert re.fullmatch("avocat.*", job), "as the alert AvocatPartDown has it"
    pod = objects["Deployment", "worker"]["spec"]["template"]
    selector = objects[ours[1]]["spec"]["selector"]["matchLabels"]
    assert selector.items() <= pod["metadata"]["labels"].items()
    (container,) = pod["spec"]["containers"]
    (port,) = container["ports"]
    assert port["name"] == objects[ours[1]]["spec"]["podMetricsEndpoints"][0]["port"]
    (settings,) = [each for at, each in objects.items() if at[0] == "ConfigMap"]
    assert settings["data"]["AVOCAT_WORKER_METRICS_PORT"] == str(port["containerPort"])
    assert settings["data"]["AVOCAT_REDIS_URL"]
