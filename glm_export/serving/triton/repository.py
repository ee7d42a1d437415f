"""A model in a repository of Triton's: ``NAME/config.pbtxt``, and version 1 beside it, whole in itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from glm_export.artifacts.engine import PLAN, Engine, load_engine
from glm_export.artifacts.manifest import (
    MANIFEST_FORMAT,
    TRITON_MANIFEST,
    package_versions,
    write_json,
)
from glm_export.artifacts.open import TOLD_BY, Artifact, Kind, open_artifact
from glm_export.artifacts.output_folder import free_disk_for, require_writable, whole_folder
from glm_export.artifacts.own_files import own_files
from glm_export.artifacts.placed_file import needed_for, place
from glm_export.artifacts.program import MODEL, WEIGHTS, OnnxProgram, load_program
from glm_export.errors import InputError, shown
from glm_export.model_folder import file_sha256
from glm_export.serving.options import ServeOptions
from glm_export.serving.triton.model import MODEL_FOLDER
from glm_export.serving.triton.model_config import (
    CONFIG,
    as_text,
    engine_config,
    program_config,
    program_notes,
    python_config,
    schema,
)
from glm_export.serving.triton.options import BACKENDS, NAME, RepositoryOptions
from glm_export.tokenizers import has_tokenizer

VERSION = "1"
MODEL_PY = '''"""Written by glm-export. The model is the package's, which tritonserver's Python has to find."""

from glm_export.serving.triton.model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''
PLAN_IN_TRITON = "model.plan"
Loaded = OnnxProgram | Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What a model is made of. ``config``: Triton's. ``linked``: files by their name in the model's folder.

    ``texts``: files that are written. ``notes``: what somebody should know of it, a line each.
    """

    config: Any
    linked: dict[str, Path]
    texts: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def _python(name: str, loaded: Loaded, options: ServeOptions) -> Planned:
    if not has_tokenizer(loaded.folder, loaded.config):
        raise InputError(f"{loaded.folder} has no tokenizer, and texts need one; export from the whole checkpoint")
    kind = Kind.ENGINE if isinstance(loaded, Engine) else Kind.PROGRAM
    files = {one: loaded.folder / one for one in sorted(own_files(loaded.folder, kind))}
    return Planned(
        config=python_config(name, options),
        linked={f"{VERSION}/{MODEL_FOLDER}/{one}": path for one, path in files.items() if path.is_file()},
        texts={f"{VERSION}/model.py": MODEL_PY},
    )


def _onnxruntime(name: str, loaded: Loaded, _: ServeOptions) -> Planned:
    if not isinstance(loaded, OnnxProgram):
        raise InputError(f"{loaded.folder} is an engine; give the exported folder it was built of")
    # Weights are looked for beside the graph that names them.
    files = {f"{VERSION}/{one}": loaded.folder / one for one in (MODEL, WEIGHTS)}
    return Planned(
        config=program_config(name, loaded),
        linked={one: path for one, path in files.items() if path.is_file()},
        notes=program_notes(loaded),
    )


def _tensorrt(name: str, loaded: Loaded, _: ServeOptions) -> Planned:
    if not isinstance(loaded, Engine):
        raise InputError(f"{loaded.folder} is an ONNX program; build an engine of it with glm-export build")
    linked = {f"{VERSION}/{PLAN_IN_TRITON}": loaded.folder / PLAN}
    return Planned(config=engine_config(name, loaded), linked=linked)


PLANS: dict[str, Callable[[str, Loaded, ServeOptions], Planned]] = dict(
    zip(BACKENDS, (_python, _onnxruntime, _tensorrt), strict=True)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonModel:
    """What was written. ``linked_bytes``: of ``total_bytes``, those that are on the disk once, with their source."""

    folder: Path
    name: str
    backend: str
    total_bytes: int
    linked_bytes: int
    notes: tuple[str, ...]


def write_model(
    source: str | Path, repository: Path, options: RepositoryOptions | None = None, engine: ServeOptions | None = None
) -> TritonModel:
    """Write a model into a repository, whole or not at all; others in it stay as they are.

    Args:
        source: an exported folder, or an engine's.
        repository: holds a folder for each model; is made where there is none.
        options: how.
        engine: of the Python backend's engine: rows at once, bounds; the other two have none.

    Raises:
        InputError: the source is neither, the backend cannot run it, or the model is there already.
        CheckpointError: the source is damaged.
        EnvironmentMissingError: Triton's schema is not installed, or the disk is too full.
    """
    options, engine = options or RepositoryOptions(), engine or ServeOptions()
    schema()
    artifact = open_artifact(source)
    loaded = _load(artifact)
    name = options.name or artifact.path.resolve().name
    if not NAME.fullmatch(name):
        raise InputError(f"a model cannot be called {shown(name)}; give it a --name")
    out = require_writable(repository / name, force=options.force, kinds=(Kind.TRITON,), sources=(artifact.path,))
    planned = PLANS[options.backend](name, loaded, engine)
    free_disk_for(out, needed_for(out, list(planned.linked.values()), link=options.link), "the copies need")
    with whole_folder(out, force=options.force, kinds=(Kind.TRITON,)) as partial:
        texts = planned.texts | {CONFIG: as_text(planned.config)}
        for one, text in texts.items():
            (partial / one).parent.mkdir(parents=True, exist_ok=True)
            (partial / one).write_text(text, encoding="utf-8")
        linked = sum(place(path, partial / one, link=options.link) for one, path in planned.linked.items())
        sizes = {one: (partial / one).stat().st_size for one in (*texts, *planned.linked)}
        write_json(partial / TRITON_MANIFEST, _manifest(artifact, options.backend, sizes))
    return TritonModel(
        folder=out,
        name=name,
        backend=options.backend,
        total_bytes=sum(sizes.values()),
        linked_bytes=linked,
        notes=planned.notes,
    )


def _load(artifact: Artifact) -> Loaded:
    if artifact.kind is Kind.ENGINE:
        return load_engine(artifact.path)
    if artifact.kind is Kind.PROGRAM:
        return load_program(artifact.path)
    raise InputError(
        f"{artifact.path} is of kind {artifact.kind.value}; a repository is made of an exported folder or an engine: "
        "write one with glm-export export"
    )


def _manifest(artifact: Artifact, backend: str, sizes: dict[str, int]) -> dict[str, Any]:
    return {
        "format": MANIFEST_FORMAT,
        "backend": backend,
        "made_of": {
            "kind": artifact.kind.value,
            "manifest_sha256": file_sha256(artifact.path / TOLD_BY[artifact.kind]),
        },
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "packages": package_versions(),
        "sizes": sizes,
    }
