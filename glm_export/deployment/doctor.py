"""What this machine has to run models with, and which folders it can run."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from glm_export.artifacts.engine import Engine, load_engine
from glm_export.artifacts.manifest import MANIFEST, require_undamaged
from glm_export.artifacts.open import Kind, kind_of
from glm_export.artifacts.program import OnnxProgram, load_program
from glm_export.deployment.extras import installed, lacking
from glm_export.engines.fit import Host, incompatibilities, probe_host
from glm_export.errors import GlmExportError
from glm_export.machine.gpu import driver_version
from glm_export.progress import Progress

RUNNABLE = (Kind.ENGINE, Kind.PROGRAM)
OTHER = "neither an engine nor an exported folder"
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
    """The machine, and a verdict on each folder asked about.

    ``packages``: versions, None where not installed. ``lacking``: what is missing of each extra of this package.
    """

    machine: Host
    driver: str | None
    python: str
    packages: dict[str, str | None]
    lacking: dict[str, str]
    providers: tuple[str, ...]
    folders: tuple[FolderVerdict, ...]

    @property
    def every_folder_runs(self) -> bool:
        """Whether all of them do."""
        return all(verdict.runs for verdict in self.folders)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"folders": [asdict(verdict) | {"runs": verdict.runs} for verdict in self.folders]}


def diagnose(folders: list[Path], *, thorough: bool = False, progress: Progress | None = None) -> Diagnosis:
    """Look at this machine and at folders.

    Args:
        folders: engines, exported folders, or folders that hold some.
        thorough: also read every file whole, to see that it is undamaged.
        progress: shows bytes read where it is thorough, a task a folder.
    """
    from glm_export.sessions.onnxruntime.runtime import providers

    machine = probe_host()
    found = [inner for folder in folders for inner in _within(folder)]
    return Diagnosis(
        machine=machine,
        driver=driver_version(),
        python=platform.python_version(),
        packages={name: installed(name) for name in PACKAGES},
        lacking=lacking(machine),
        providers=tuple(providers()),
        folders=tuple(judge(folder, machine, thorough=thorough, progress=progress) for folder in found),
    )


def _within(folder: Path) -> list[Path]:
    """The folder itself, or those of ours that lie in it."""
    if kind_of(folder) in RUNNABLE or not folder.is_dir():
        return [folder]
    return sorted(inner for inner in folder.iterdir() if kind_of(inner) in RUNNABLE) or [folder]


def judge(folder: Path, machine: Host, *, thorough: bool = False, progress: Progress | None = None) -> FolderVerdict:
    """Whether one folder runs on a machine."""
    kind = kind_of(folder)
    runs_on, found = "", []
    try:
        if kind is Kind.ENGINE:
            engine = load_engine(folder)
            runs_on, found = f"{engine.runtime} {engine.version}", list(incompatibilities(engine, machine))
            found += _damage(engine, progress) if thorough else []
        elif kind is Kind.PROGRAM:
            program = load_program(folder)
            runs_on, found = f"onnxruntime ({program.dialect})", _damage(program, progress) if thorough else []
        else:
            found = [f"{folder} is {OTHER}"]
    except GlmExportError as error:
        runs_on, found = "", [str(error)]
    said = kind.value if kind in RUNNABLE else OTHER
    return FolderVerdict(folder=str(folder), kind=said, runs_on=runs_on, obstacles=tuple(found))


def _damage(written: Engine | OnnxProgram, progress: Progress | None) -> list[str]:
    try:
        if isinstance(written, Engine):
            written.require_undamaged(progress)
        else:
            require_undamaged(written.folder / MANIFEST, written.manifest, "export", progress)
    except GlmExportError as error:
        return [str(error)]
    return []
