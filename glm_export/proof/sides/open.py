"""Two sides as a person names them, opened and held to each other."""

from __future__ import annotations

from pathlib import Path

from glm_export.artifacts.engine import Engine, load_engine
from glm_export.artifacts.open import Kind, kind_of, open_artifact, require_checkpoint
from glm_export.artifacts.program import OnnxProgram, load_program
from glm_export.checkpoints.checkpoint import Checkpoint, open_checkpoint
from glm_export.errors import InputError
from glm_export.progress import Progress
from glm_export.proof.check import CheckReport, check, check_saved
from glm_export.proof.check_engine import check_engine
from glm_export.proof.layers.check_layers import check_layer_by_layer
from glm_export.proof.options import CheckOptions
from glm_export.proof.origin import open_origin
from glm_export.proof.sides.foreign import find_onnx, foreign_program
from glm_export.proof.sides.saved_run import SavedRun, is_saved_run, load_run

Candidate = OnnxProgram | Engine | SavedRun | Path
"""What is checked: a path is an ONNX file that another tool made."""


def check_sides(
    candidate: str | Path | OnnxProgram | Engine,
    against: str | Path | Checkpoint,
    options: CheckOptions,
    family: str | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """Check one side against another.

    Args:
        candidate: an exported folder, an engine, an ONNX file of another tool or its folder, or a saved run.
        against: a checkpoint, an exported folder, an ONNX file, or a saved run.
        options: how.
        family: of a checkpoint, where its config.json leaves it open.
        progress: shows how far it is.

    Raises:
        InputError: a side is none of these, or the two are not of one model.
    """
    opened = open_candidate(candidate)
    other = _open_other(opened, against, family)
    if isinstance(opened, SavedRun):
        if not isinstance(other, SavedRun):
            raise InputError(f"{opened.folder} is a saved run and answers nothing else; give another run --against it")
        return check_saved(opened, other, options)
    if isinstance(opened, Engine):
        return check_engine(opened, other, options)
    if isinstance(opened, Path):
        opened = foreign_program(opened, other.config)
    if not options.layer_by_layer:
        return check(opened, other, options, progress)
    if not isinstance(other, Checkpoint) or options.save_run is not None:
        raise InputError("--layer-by-layer is against a checkpoint, and saves no run; leave it out")
    return check_layer_by_layer(opened, other, options, progress)


def open_candidate(source: str | Path | OnnxProgram | Engine) -> Candidate:
    """What is to be checked.

    Raises:
        InputError: it is nothing that can be.
    """
    if not isinstance(source, str | Path):
        return source
    path = Path(source)
    if is_saved_run(path):
        return load_run(path, candidate=True)
    kind = kind_of(path)
    if kind is Kind.ENGINE:
        return load_engine(path)
    found = find_onnx(path) if kind is not Kind.PROGRAM else None
    # What is neither ends in the sentence that says what an exported folder is.
    return found if found is not None else load_program(path)


def _open_other(
    candidate: Candidate, against: str | Path | Checkpoint, family: str | None
) -> Checkpoint | OnnxProgram | SavedRun:
    if not isinstance(against, Checkpoint):
        path = Path(against)
        if is_saved_run(path):
            return load_run(path)
        if kind_of(path) is Kind.PROGRAM:
            return load_program(path)
        if path.is_file() and path.suffix == ".onnx":
            if isinstance(candidate, Path):
                raise InputError(f"{path} says too little of its model; hold both files to their checkpoint")
            config = candidate.program.config if isinstance(candidate, Engine) else candidate.config
            return foreign_program(path, config)
    if isinstance(candidate, OnnxProgram | Engine):
        return open_origin(candidate.program if isinstance(candidate, Engine) else candidate, against, family)
    if isinstance(against, Checkpoint):
        return against
    return open_checkpoint(require_checkpoint(open_artifact(against)), family)
