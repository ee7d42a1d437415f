"""An engine in its folder: the plan, what runs it beside it, and ``engine.json``, which says where it will load."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from glm_export.artifacts.manifest import ENGINE_MANIFEST, read_manifest, require_undamaged
from glm_export.artifacts.program import OnnxProgram, program_of
from glm_export.errors import CheckpointError, InputError, reason
from glm_export.model_folder import file_sha256
from glm_export.progress import Progress
from glm_export.spec.config import GlmConfig
from glm_export.spec.optimization_profile import Limits, OptimizationProfile, Shape
from glm_export.spec.summary import Summarized

PLAN = "engine.plan"
BUILD_LOG = "build.log"
KERNELS = "kernels.cache"
"""What TensorRT-RTX compiled for this machine's GPU when the engine ran, written beside it then."""
READ_LATER = {"memory", "plan_sha256"}
"""Of ``engine.json``, by whom the engine is given to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltOn:
    """Where an engine was built. ``gpu`` and what follows are None where there was none (TensorRT-RTX)."""

    system: str
    gpu: str | None = None
    compute_capability: str | None = None
    driver: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Compatibility:
    """Where an engine may load besides the version and GPU it was built with.

    ``targets``: compute capabilities of TensorRT-RTX; empty: all those it knows from 8.0 on.
    """

    version: bool = False
    hardware: str | None = None
    stripped: bool = False
    targets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Engine(Summarized):
    """A built folder. ``program`` is the ONNX program it was made of, by its manifest; its weights are in the plan."""

    folder: Path
    program: OnnxProgram
    runtime: str
    version: str
    limits: Limits
    profiles: tuple[OptimizationProfile, ...]
    built_on: BuiltOn
    compatibility: Compatibility
    manifest: dict[str, Any]

    def summary(self) -> dict[str, str]:
        """Of which model, for what."""
        program = self.program
        return {
            "folder": str(self.folder),
            "runtime": f"{self.runtime} {self.version}",
            "family": program.config.family,
            "dtype": program.dtype,
            "recipe": program.recipe or "none",
            "profiles": str(len(self.profiles)),
        }

    @property
    def config(self) -> GlmConfig:
        """The model's sizes."""
        return self.program.config

    @property
    def plan_path(self) -> Path:
        """The serialized engine."""
        return self.folder / PLAN

    def require_undamaged(self, progress: Progress | None = None) -> None:
        """Hash every file, the plan as well.

        Args:
            progress: shows bytes read.

        Raises:
            CheckpointError: one is not what was written.
        """
        if "sha256" in self.manifest:
            require_undamaged(self.folder / ENGINE_MANIFEST, self.manifest, "build", progress)
        elif file_sha256(self.plan_path) != self.manifest["plan_sha256"]:  # written by an earlier version
            raise CheckpointError(
                f"{self.plan_path} is damaged: its sha256 is not the one it was written with; build again"
            )


def load_engine(folder: Path | str) -> Engine:
    """Open an engine's folder; the plan itself is not read.

    Raises:
        InputError: it is none.
        CheckpointError: a file is missing or has another size, or ``engine.json`` does not fit this version.
    """
    folder = Path(folder)
    if not (folder / ENGINE_MANIFEST).is_file():
        raise InputError(f"{folder} holds no {ENGINE_MANIFEST}; give a folder that 'glm-export build' wrote")
    try:
        manifest = read_manifest(folder / ENGINE_MANIFEST, "build")
        if not manifest.keys() >= READ_LATER:
            raise KeyError(*sorted(READ_LATER - manifest.keys()))
        return Engine(
            folder=folder,
            program=program_of(folder, manifest["program"]),
            runtime=manifest["runtime"],
            version=manifest["version"],
            limits=Limits(**manifest["limits"]),
            profiles=tuple(_profile(values) for values in manifest["profiles"]),
            built_on=BuiltOn(**manifest["built_on"]),
            compatibility=Compatibility(
                **manifest["compatibility"] | {"targets": tuple(manifest["compatibility"]["targets"])}
            ),
            manifest=manifest,
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder / ENGINE_MANIFEST} does not fit this version: {reason(error)}; build again"
        ) from error


def profile_json(profile: OptimizationProfile) -> dict[str, Any]:
    """Plain values."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(profile)))
    return values


def _profile(values: dict[str, Any]) -> OptimizationProfile:
    shapes: dict[str, tuple[Shape, Shape, Shape]] = {
        name: (tuple(least), tuple(usual), tuple(most)) for name, (least, usual, most) in values["shapes"].items()
    }
    return OptimizationProfile(name=values["name"], shapes=shapes)
