"""Manifests for Kubernetes, held to its schemas and to the server's own options, doors and metrics."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import rich_click as click
import yaml  # type: ignore[import-untyped]

from glm_export.serving.http.doors import health
from glm_export.serving.metrics.exposition import exposition
from glm_export.serving.options import ServeOptions
from glm_export.terminal.serving.serve import serve
from glm_export.terminal.store.fetch import fetch

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "deploy" / "kubernetes"
RENDERED = ("base", "autoscaling", "monitoring", "gpu")
SCHEMAS = json.loads((Path(__file__).parent / "schemas.json").read_text(encoding="utf-8"))
URL = "https://models.example/poems"
Manifest = dict[str, Any]


def schema(kind: str) -> dict[str, Any]:
    return {"$ref": f"#/definitions/{SCHEMAS['kinds'][kind]}", "definitions": SCHEMAS["definitions"]}


def require_valid(kind: str, manifest: Any) -> None:
    jsonschema.Draft7Validator(schema(kind)).validate(manifest)


def require_schema(manifest: Manifest) -> None:
    """As the API server would, and no field more; of other projects' kinds what is Kubernetes' own in them."""
    kind, spec = manifest["kind"], manifest.get("spec", {})
    if kind in SCHEMAS["kinds"]:
        require_valid(kind, manifest)
    elif kind == "RayService":
        assert (manifest["apiVersion"], set(spec)) == ("ray.io/v1", {"serveConfigV2", "rayClusterConfig"})
        cluster = spec["rayClusterConfig"]
        assert set(cluster) <= {"rayVersion", "enableInTreeAutoscaling", "headGroupSpec", "workerGroupSpecs"}
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            assert set(group) <= {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
            assert all(isinstance(value, str) for value in group["rayStartParams"].values())
            require_valid("PodTemplateSpec", group["template"])
    elif kind == "InferenceService":
        assert (manifest["apiVersion"], set(spec)) == ("serving.kserve.io/v1beta1", {"predictor"})
        own = {"minReplicas", "maxReplicas", "scaleMetric", "scaleTarget"}
        require_valid("PodTemplateSpec", {"spec": {k: v for k, v in spec["predictor"].items() if k not in own}})
    elif kind == "PodMonitor":
        assert (manifest["apiVersion"], set(spec)) == (
            "monitoring.coreos.com/v1", {"selector", "podMetricsEndpoints"},
        )  # fmt: skip
        for endpoint in spec["podMetricsEndpoints"]:
            assert set(endpoint) <= {"port", "path", "interval", "authorization"}
    else:
        raise AssertionError(f"nothing is known of {kind}")


def pods(manifest: Manifest) -> list[dict[str, Any]]:
    """Specs of the pods that a manifest makes."""
    spec = manifest.get("spec", {})
    if manifest["kind"] == "Deployment":
        return [spec["template"]["spec"]]
    if manifest["kind"] == "InferenceService":
        return [spec["predictor"]]
    if manifest["kind"] == "RayService":
        cluster = spec["rayClusterConfig"]
        return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    return []


def require_ours(manifest: Manifest) -> None:
    """Commands, ports, probes, users and periods are those of the server and its image."""
    paths = {route.path for route in health.router.routes}
    image = (ROOT / "deploy" / "server.Dockerfile").read_text(encoding="utf-8")
    for pod in pods(manifest):
        assert re.findall(r"^USER (\d+)$", image, re.M) == [str(pod["securityContext"]["runAsUser"])]
        for container in [*pod.get("initContainers", ()), *pod["containers"]]:
            words = [word.replace("$(MODEL)", URL) for word in container.get("command", [])]
            assert not container["securityContext"]["allowPrivilegeEscalation"]
            if words[:2] == ["glm-export", "fetch"]:
                assert fetch.make_context("fetch", words[2:]).params["urls"] == (URL,)
            elif words:
                assert words[:2] == ["glm-export", "serve"]
                given = serve.make_context("serve", [*words[2:], *container["args"]]).params
                assert given["host"] == "0.0.0.0"
                mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
                assert str(given["api_key_file"].parent) in mounts
                pause = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
                assert pod["terminationGracePeriodSeconds"] > given["drain_seconds"] + pause
                assert [port["containerPort"] for port in container["ports"]] == [given["port"]]
            for probe in (value for name, value in container.items() if name.endswith("Probe")):
                assert probe["httpGet"]["path"] in paths


def require_metrics(manifest: Manifest) -> None:
    """What an autoscaler follows is what the server tells."""
    told = exposition({}).decode()
    for metric in manifest["spec"].get("metrics", ()) if manifest["kind"] == "HorizontalPodAutoscaler" else ():
        assert f"# TYPE {metric['pods']['metric']['name']} gauge" in told


def require_everything(manifest: Manifest) -> None:
    require_schema(manifest)
    require_ours(manifest)
    require_metrics(manifest)


def rendered(name: str) -> list[Manifest]:
    """What `kubectl apply --kustomize` would send."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl, which renders kustomizations, is not installed")
    made = subprocess.run([kubectl, "kustomize", FOLDER / name], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return list(yaml.safe_load_all(made.stdout))


def written(name: str) -> Manifest:
    (manifest,) = yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8"))
    return dict(manifest)


@pytest.mark.parametrize("name", RENDERED)
def test_what_is_rendered_is_what_kubernetes_takes(name: str) -> None:
    manifests = rendered(name)
    assert {"Deployment", "Service", "NetworkPolicy", "PodDisruptionBudget"} <= {one["kind"] for one in manifests}
    for manifest in manifests:
        require_everything(manifest)
    (deployment,) = [one for one in manifests if one["kind"] == "Deployment"]
    assert ("replicas" in deployment["spec"]) == (name != "autoscaling")
    gpus = deployment["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")
    assert gpus == ("1" if name == "gpu" else None)


PLAIN = sorted(
    str(path.relative_to(FOLDER))
    for path in FOLDER.rglob("*.yaml")
    if path.name != "kustomization.yaml" and path != FOLDER / "gpu" / "deployment.yaml"
)


@pytest.mark.parametrize("name", PLAIN)
def test_files_as_they_are_written(name: str) -> None:
    """Also where nothing renders them; selectors come with the rendering."""
    manifest = written(name)
    if manifest["kind"] == "Deployment":
        labels = {"app.kubernetes.io/name": "glm-export"}
        manifest["spec"]["selector"] = {"matchLabels": labels}
    require_everything(manifest)


def test_every_kustomization_is_rendered() -> None:
    assert {path.parent.name for path in FOLDER.rglob("kustomization.yaml")} == set(RENDERED)


def test_ray_takes_its_configuration(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    from ray.serve.schema import ServeDeploySchema

    from glm_export.serving.ray.application import build

    text = written("ray/rayservice.yaml")["spec"]["serveConfigV2"]
    config = ServeDeploySchema.parse_obj(yaml.safe_load(text))
    (application,) = config.applications
    assert application.import_path == f"{build.__module__}:{build.__name__}"
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    made = build(application.args | {"api_key_file": str(keys)})
    assert [engine._bound_deployment.name for engine in made._bound_deployment.init_args[3:]] == ["chatglm3-ort"]
    with pytest.raises(ValueError, match="proxy_location"):
        ServeDeploySchema.parse_obj(yaml.safe_load(text) | {"proxy_location": "Everywhere"})


def container(manifest: Manifest) -> dict[str, Any]:
    return dict.__getitem__(manifest["spec"]["template"]["spec"], "containers")[0]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("base/deployment.yaml", lambda one: one["spec"].update(replica=2)),
        ("base/deployment.yaml", lambda one: container(one).update(image=7)),
        ("base/deployment.yaml", lambda one: container(one)["args"].append("--max-rows")),
        ("base/deployment.yaml", lambda one: container(one)["livenessProbe"]["httpGet"].update(path="/healthz")),
        ("base/deployment.yaml", lambda one: container(one)["ports"][0].update(containerPort=8080)),
        ("base/deployment.yaml", lambda one: one["spec"]["template"]["spec"].update(terminationGracePeriodSeconds=60)),
        ("base/deployment.yaml", lambda one: one["spec"]["template"]["spec"]["securityContext"].update(runAsUser=1)),
        ("base/service.yaml", lambda one: one["spec"]["ports"][0].update(port="http")),
        ("autoscaling/horizontalpodautoscaler.yaml", lambda one: one["spec"].update(maxReplica=3)),
        (
            "autoscaling/horizontalpodautoscaler.yaml",
            lambda one: one["spec"]["metrics"][0]["pods"]["metric"].update(name="glm_running"),
        ),
        ("kserve/inferenceservice.yaml", lambda one: one["spec"]["predictor"].update(minReplica=1)),
        ("kserve/inferenceservice.yaml", lambda one: one["spec"]["predictor"]["containers"][0]["args"].pop()),
        (
            "ray/rayservice.yaml",
            lambda one: one["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"].update(container=[]),
        ),
        ("monitoring/podmonitor.yaml", lambda one: one["spec"]["podMetricsEndpoints"][0].update(paths="/metrics")),
    ],
)
def test_a_planted_mistake_is_found(name: str, change: Callable[[Any], None]) -> None:
    right = written(name)
    if right["kind"] == "Deployment":
        right["spec"]["selector"] = {"matchLabels": {"app.kubernetes.io/name": "glm-export"}}
    require_everything(right)
    wrong = copy.deepcopy(right)
    change(wrong)
    with pytest.raises((AssertionError, KeyError, jsonschema.ValidationError, click.ClickException)):
        require_everything(wrong)


def test_the_documentation_names_what_there_is() -> None:
    text = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    for path in re.findall(r"deploy/kubernetes/[\w/.]+\w", text):
        assert (ROOT / path).exists(), path
    assert ServeOptions().port == 8000
