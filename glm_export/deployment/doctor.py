"""What this machine has to run models with, and which folders it can run."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from glm_export.artifacts.engine import load_engine
from glm_export.artifacts.open import is_engine, is_program
from glm_export.artifacts.program import load_program
from glm_export.engines.fit import Host, incompatibilities, probe_host
from glm_export.errors import GlmExportError
from glm_export.machine.gpu import driver_version

ENGINE, PROGRAM, OTHER = "engine", "ONNX program", "neither an engine nor an exported folder"
PACKAGES = ("torch", "onnxruntime-gpu", "onnxruntime", "polygraphy", "onnxruntime-genai")


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderVerdict:
    """Whether a folder runs here, on what, and why not."""

    folder: str
    kind: str
    runs_on: str
    obstacles: tuple[str, ...]

    @property
    def runs(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.obstacles


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """The machine, and a verdict on each folder asked about. ``packages``: versions, None where not installed."""

    machine: Host
    driver: str | None
    python: str
    packages: dict[str, str | None]
    providers: tuple[str, ...]
    folders: tuple[FolderVerdict, ...]

    @property
    def every_folder_runs(self) -> bool:
        """Whether all of them do."""
        return all(verdict.runs for verdict in self.folders)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"folders": [asdict(verdict) | {"runs": verdict.runs} for verdict in self.folders]}


def diagnose(folders: list[Path], *, thorough: bool = False) -> Diagnosis:
    """Look at this machine and at folders.

    Args:
        folders: engines, exported folders, or folders that hold some.
        thorough: also read every plan whole, to see that it is undamaged.
    """
    from glm_export.sessions.onnxruntime.runtime import providers

    machine = probe_host()
    found = [inner for folder in folders for inner in _within(folder)]
    return Diagnosis(
        machine=machine,
        driver=driver_version(),
        python=platform.python_version(),
        packages={name: _version(name) for name in PACKAGES},
        providers=tuple(providers()),
        folders=tuple(judge(folder, machine, thorough=thorough) for folder in found),
    )


def _within(folder: Path) -> list[Path]:
    """The folder itself, or those of ours that lie in it."""
    if is_engine(folder) or is_program(folder) or not folder.is_dir():
        return [folder]
    return sorted(inner for inner in folder.iterdir() if is_engine(inner) or is_program(inner)) or [folder]


def judge(folder: Path, machine: Host, *, thorough: bool = False) -> FolderVerdict:
    """Whether one folder runs on a machine."""
    try:
        if is_engine(folder):
            engine = load_engine(folder)
            found = incompatibilities(engine, machine)
            if thorough and not engine.plan_is_whole:
                found.append(
                    f"{engine.plan_path} is damaged: its sha256 is not the one it was written with; build again"
                )
            name = f"{engine.runtime} {engine.version}"
            return FolderVerdict(folder=str(folder), kind=ENGINE, runs_on=name, obstacles=tuple(found))
        if is_program(folder):
            program = load_program(folder)
            return FolderVerdict(
                folder=str(folder), kind=PROGRAM, runs_on=f"onnxruntime ({program.dialect})", obstacles=()
            )
    except GlmExportError as error:
        kind = ENGINE if is_engine(folder) else PROGRAM
        return FolderVerdict(folder=str(folder), kind=kind, runs_on="", obstacles=(str(error),))
    return FolderVerdict(folder=str(folder), kind=OTHER, runs_on="", obstacles=(f"{folder} is {OTHER}",))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
