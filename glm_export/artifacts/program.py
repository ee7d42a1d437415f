"""What travels between the steps: an ONNX program in its folder, with signature and provenance."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm_export.artifacts.manifest import MANIFEST, read_manifest
from glm_export.errors import CheckpointError, InputError
from glm_export.spec.config import GlmConfig
from glm_export.spec.signature import Signature

MODEL = "model.onnx"
WEIGHTS = "model.onnx.data"


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxProgram:
    """An exported folder: ``model.onnx``, ``model.onnx.data``, tokenizer files, configs, manifest."""

    folder: Path
    config: GlmConfig
    signature: Signature
    dialect: str
    dtype: str
    logits: str
    manifest: dict[str, Any]
    recipe: str | None = None

    @property
    def model_path(self) -> Path:
        """The graph; its weights lie beside it."""
        return self.folder / MODEL


def load_program(folder: Path) -> OnnxProgram:
    """Open an exported folder.

    Raises:
        InputError: it is no exported folder.
        CheckpointError: files are missing or not the size the manifest states.
    """
    if not (folder / MANIFEST).is_file():
        raise InputError(f"{folder} holds no {MANIFEST}; give a folder that 'glm-export export' wrote")
    path = folder / MANIFEST
    manifest = read_manifest(path, "export")
    try:
        return program_of(folder, manifest)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} does not fit this version: {error!r}; export again") from error


def program_of(folder: Path, manifest: dict[str, Any]) -> OnnxProgram:
    """What a program's manifest says, for files in ``folder``."""
    return OnnxProgram(
        folder=folder,
        config=GlmConfig.from_json(manifest["config"]),
        signature=Signature.from_json(manifest["signature"]),
        dialect=manifest["dialect"],
        dtype=manifest["dtype"],
        logits=manifest["logits"],
        manifest=manifest,
        recipe=manifest.get("recipe"),
    )
