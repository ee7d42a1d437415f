"""What is stated of a folder, as predicates of in-toto: how its test came out, and how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glm_export.artifacts.program import BLOCK_OPTIONS, KV_CACHE_DTYPE
from glm_export.certificates.claims import Proof, Result

TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"
PROVENANCE = "https://slsa.dev/provenance/v1"
BUILD_TYPES = {"program": "https://glm-export/export/v1", "engine": "https://glm-export/build/v1"}
"""How a folder was made, which says what its parameters mean: those of ``export`` and of ``build``."""
BUILDER = "https://glm-export/command-line/v1"
"""Whoever ran the command line: no platform vouches for it, so the signer does."""
EXPORT_PARAMETERS = ("dialect", "opset", "dtype", "logits", "recipe", "left_in_float")
BUILD_PARAMETERS = ("runtime", "version", "options", "limits", "compatibility")


def test_result(proof: Proof, manifest_name: str, manifest_digest: str) -> dict[str, Any]:
    """The parity statement: which claims passed, were warned of, failed.

    Args:
        proof: what was proven.
        manifest_name: of the folder.
        manifest_digest: its sha256: it says what was measured and allowed, and names every file by its digest.
    """
    configuration = {
        "name": manifest_name,
        "digest": {"sha256": manifest_digest},
        "mediaType": "application/json",
        "annotations": {
            "reference": f"{proof.reference} {proof.reference_dtype}",
            "candidate": proof.candidate,
            "created": proof.created,
        },
    }
    return {
        "result": proof.result.value,
        "configuration": [configuration],
        "passedTests": proof.named(Result.PASSED),
        "warnedTests": proof.named(Result.WARNED),
        "failedTests": proof.named(Result.FAILED),
    }


def provenance(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The lineage: parameters of the export (and the build), the checkpoint's files, adapters, ranges, packages.

    Args:
        manifest: of a program, or of an engine, which holds that of its program.
    """
    engine = manifest if "program" in manifest else None
    program = manifest["program"] if engine is not None else manifest
    parameters: dict[str, Any] = {
        "checkpoint": program["checkpoint"],
        "family": program["config"]["family"],
        "adapters": program.get("adapters", []),
        **{name: program.get(name) for name in EXPORT_PARAMETERS},
        **{name: program[name] for name in (BLOCK_OPTIONS, KV_CACHE_DTYPE) if name in program},
    }
    dependencies = _files(program["source_sha256"]) + _files(program.get("ranges_sha256") or {})
    if engine is not None:
        parameters = {"export": parameters, **{name: engine.get(name) for name in BUILD_PARAMETERS}}
        dependencies += _files(program.get("sha256") or {}, "program/")
    packages = manifest["packages"]
    return {
        "buildDefinition": {
            "buildType": BUILD_TYPES["program" if engine is None else "engine"],
            "externalParameters": parameters,
            "resolvedDependencies": dependencies + _packages(packages),
        },
        "runDetails": {
            "builder": {"id": BUILDER, "version": {"glm-export": packages["glm-export"]}},
            "metadata": {"finishedOn": manifest["created"]},
        },
    }


def _files(hashes: Mapping[str, str], before: str = "") -> list[dict[str, Any]]:
    return [{"name": f"{before}{name}", "digest": {"sha256": digest}} for name, digest in sorted(hashes.items())]


def _packages(versions: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"uri": f"pkg:pypi/{name}@{version}"} for name, version in sorted(versions.items()) if version[0].isdigit()]
