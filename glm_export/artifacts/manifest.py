"""The manifest of a folder of ours: what was written, with which packages, in which sizes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from glm_export.errors import CheckpointError, shown
from glm_export.model_folder import file_sha256, inside, load_json
from glm_export.progress import NullProgress, Progress

MANIFEST = "manifest.json"
ENGINE_MANIFEST = "engine.json"
CARD = "README.md"
"""For people. Whoever has the folder may rewrite it, so it may be another than was recorded."""
RANGES_MANIFEST = "ranges.json"
TRITON_MANIFEST = "triton.json"
LAYOUT_MANIFEST = "layout.json"
MANIFEST_FORMAT = 1
MARKER = ".glm-export"
"""An empty file in every folder that is being filled: one that holds it is ours, however unfinished."""
PROOF = "proof"
"""The manifest's key for what was proven of the folder, which is written after its files and never hashed with them."""
SIGNATURE, STATEMENTS = "model.sig", "model.intoto.jsonl"
"""Beside a folder's files: its signature, named as OpenSSF Model Signing does, and what is stated of it, as in-toto."""
SIGNED_IN = "signed_in"
"""Of a proof: which of these two were written with it."""
QUICK_BYTES = 1 << 23
"""Files up to this size are hashed whenever a folder is opened: all but weights and plans, in milliseconds."""
RECORDED_PACKAGES = ("glm-export", "torch", "onnx", "onnxscript", "onnx-ir", "safetensors")


def read_manifest(path: Path, verb: str) -> dict[str, Any]:
    """Read what a folder of ours says of itself, and see that its files are those it states.

    Args:
        path: the manifest.
        verb: what to do again where something is amiss, ``export`` or ``build``.

    Raises:
        CheckpointError: it cannot be read, is of another format, or a file is missing, has another size or, where it
            is small, other bytes.
    """
    try:
        manifest: dict[str, Any] = load_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}; {verb} again") from error
    if not isinstance(manifest, dict):
        raise CheckpointError(f"{path} should hold a JSON object with the sizes of its files; {verb} again")
    if manifest.get("format") != MANIFEST_FORMAT:
        raise CheckpointError(
            f"{path} has format {shown(manifest.get('format'))}, this version reads {MANIFEST_FORMAT}; {verb} again"
        )
    if not isinstance(manifest.get("sizes"), dict):
        raise CheckpointError(f"{path} does not state the sizes of its files; {verb} again")
    require_recorded(path, manifest, verb)
    return manifest


def require_recorded(path: Path, manifest: Mapping[str, Any], verb: str) -> None:
    """See that a folder's files have the sizes that were recorded and, where they are small, the hashes.

    Args:
        path: the manifest.
        manifest: what was read of it.
        verb: what to do again where something is amiss.

    Raises:
        CheckpointError: a file is missing, or is another.
    """
    for name, size in _to_be_as_recorded(manifest):
        file = inside(path.parent, name)
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            raise CheckpointError(
                f"{file} should have {size} bytes, found {found if found is not None else 'no file'}; {verb} again"
            )
    _require_hashes(path, manifest, verb, lambda size: size <= QUICK_BYTES)


def require_undamaged(path: Path, manifest: Mapping[str, Any], verb: str, progress: Progress | None = None) -> None:
    """Hash every file of a folder of ours, weights and plans as well; reads all of it.

    Args:
        path: the manifest.
        manifest: what :func:`read_manifest` read of it.
        verb: what to do again where something is amiss.
        progress: shows bytes read, as a task that is called as the folder.

    Raises:
        CheckpointError: a file is not what was written; or nothing says what was, as before there were hashes.
    """
    if "sha256" not in manifest:
        raise CheckpointError(f"{path} has no hashes of the folder's files, as older versions wrote it; {verb} again")
    _require_hashes(path, manifest, verb, lambda _: True, progress)


def _to_be_as_recorded(manifest: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Names and sizes of all files but the card."""
    return [(name, size) for name, size in manifest["sizes"].items() if name != CARD]


def _require_hashes(
    path: Path,
    manifest: Mapping[str, Any],
    verb: str,
    asked: Callable[[int], bool],
    progress: Progress | None = None,
) -> None:
    hashes = manifest.get("sha256", {})
    if not isinstance(hashes, dict):
        raise CheckpointError(f"{path} should map names to hashes under sha256; {verb} again")
    hashed = {name: size for name, size in _to_be_as_recorded(manifest) if name in hashes and asked(size)}
    advance = (progress or NullProgress()).task(path.parent.name, sum(hashed.values()))
    for name in hashed:
        if file_sha256(path.parent / name, advance) != hashes[name]:
            raise CheckpointError(
                f"{path.parent / name} is damaged or was changed: its sha256 is not the one in {path.name}; {verb} "
                "again"
            )


def recorded_files(folder: Path, known: Mapping[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """What a manifest records of every file beside it: ``sizes`` in bytes and ``sha256`` in hexadecimal, by name.

    Args:
        folder: filled, but for the manifest.
        known: hashes that were made while files were written.
    """
    files = [path for path in sorted(folder.iterdir()) if path.name != MARKER]
    return {
        "sizes": {path.name: path.stat().st_size for path in files},
        "sha256": {path.name: (known or {}).get(path.name) or file_sha256(path) for path in files},
    }


def package_versions() -> dict[str, str]:
    """Versions of the packages that shape a program, and of this one."""
    installed = {
        name: distribution.version
        for distribution in distributions()
        # The same files without what exporting takes (runtime/pyproject.toml).
        if (name := str(distribution.metadata["Name"]).replace("glm-export-runtime", "glm-export")) in RECORDED_PACKAGES
    }
    return {name: installed.get(name, "not installed") for name in RECORDED_PACKAGES}


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Readable JSON, flushed to disk."""
    with path.open("w", encoding="utf-8") as file:
        json.dump(values, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
