"""The manifest of a folder of ours: what was written, with which packages, in which sizes."""

from __future__ import annotations

import json
import os
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from glm_export.errors import CheckpointError
from glm_export.model_folder import load_json

MANIFEST = "manifest.json"
ENGINE_MANIFEST = "engine.json"
RANGES_MANIFEST = "ranges.json"
MANIFEST_FORMAT = 1
RECORDED_PACKAGES = ("glm-export", "torch", "onnx", "onnxscript", "onnx-ir", "safetensors")


def read_manifest(path: Path, verb: str) -> dict[str, Any]:
    """Read what a folder of ours says of itself, and see that its files have the sizes it states.

    Args:
        path: the manifest.
        verb: what to do again where something is amiss, ``export`` or ``build``.

    Raises:
        CheckpointError: it cannot be read, is of another format, or a file is missing or has another size.
    """
    try:
        manifest: dict[str, Any] = load_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}; {verb} again") from error
    if not isinstance(manifest, dict):
        raise CheckpointError(f"{path} should hold a JSON object with the sizes of its files; {verb} again")
    if manifest.get("format") != MANIFEST_FORMAT:
        raise CheckpointError(
            f"{path} has format {manifest.get('format')!r}, this version reads {MANIFEST_FORMAT}; {verb} again"
        )
    if not isinstance(manifest.get("sizes"), dict):
        raise CheckpointError(f"{path} does not state the sizes of its files; {verb} again")
    for name, size in manifest["sizes"].items():
        file = path.parent / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            raise CheckpointError(
                f"{file} should have {size} bytes, found {found if found is not None else 'no file'}; {verb} again"
            )
    return manifest


def package_versions() -> dict[str, str]:
    """Versions of the packages that shape a program, and of this one."""
    installed = {
        name: distribution.version
        for distribution in distributions()
        if (name := distribution.metadata["Name"]) in RECORDED_PACKAGES
    }
    return {name: installed.get(name, "not installed") for name in RECORDED_PACKAGES}


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Readable JSON, flushed to disk."""
    with path.open("w", encoding="utf-8") as file:
        json.dump(values, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
