"""Take out of Kubernetes' own schemas what the manifests in deploy/kubernetes are made of.

    python tests/deployment/kubernetes/extract.py FOLDER tests/deployment/kubernetes/schemas.json

FOLDER: `v1.32.…-local-strict` of github.com/yannh/kubernetes-json-schema (Apache-2.0), which the package
`kubernetes-validate` holds; itself made of the OpenAPI document of Kubernetes (Apache-2.0). Descriptions are left out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

KINDS = {
    "Deployment": "io.k8s.api.apps.v1.Deployment",
    "Service": "io.k8s.api.core.v1.Service",
    "ServiceAccount": "io.k8s.api.core.v1.ServiceAccount",
    "ConfigMap": "io.k8s.api.core.v1.ConfigMap",
    "PersistentVolumeClaim": "io.k8s.api.core.v1.PersistentVolumeClaim",
    "HorizontalPodAutoscaler": "io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler",
    "PodDisruptionBudget": "io.k8s.api.policy.v1.PodDisruptionBudget",
    "NetworkPolicy": "io.k8s.api.networking.v1.NetworkPolicy",
    "PodTemplateSpec": "io.k8s.api.core.v1.PodTemplateSpec",
    "Container": "io.k8s.api.core.v1.Container",
}


def bare(value: Any) -> Any:
    """Without what only people read; references point into the file."""
    if isinstance(value, dict):
        kept = {name: bare(one) for name, one in value.items() if name != "description" or not isinstance(one, str)}
        if "$ref" in kept:
            kept["$ref"] = "#/definitions/" + kept["$ref"].rsplit("/", 1)[1]
        return {name: one for name, one in kept.items() if not name.startswith("x-kubernetes")}
    return [bare(one) for one in value] if isinstance(value, list) else value


def references(value: Any) -> set[str]:
    """Names of all that a schema points to."""
    if isinstance(value, dict):
        own = {value["$ref"].rsplit("/", 1)[1]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*map(references, value.values()))
    return set().union(*map(references, value)) if isinstance(value, list) else set()


def main() -> None:
    folder, out = map(Path, sys.argv[1:])
    known = json.loads((folder / "_definitions.json").read_text())["$defs"]
    kept: dict[str, Any] = {}
    wanted = set(KINDS.values())
    while wanted:
        name = wanted.pop()
        kept[name] = bare(known[name])
        wanted |= references(kept[name]) - kept.keys()
    told = {"version": folder.name, "kinds": KINDS, "definitions": dict(sorted(kept.items()))}
    out.write_text(json.dumps(told, separators=(",", ":"), sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
