"""Two sides as a person names them, opened and held to each other."""

from __future__ import annotations

from pathlib import Path

from glm_export.artifacts.engine import Engine, load_engine
from glm_export.artifacts.open import Kind, kind_of, located, open_artifact, require_checkpoint
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
from glm_export.spec.option import flag

OF_LAYERS = "is for a program and its checkpoint: an engine, another program or a saved run has no layers to look into"
WHY = {
    "layers": OF_LAYERS,
    "layer_by_layer": OF_LAYERS,
    "evidence": OF_LAYERS,
    "corpus": "needs a checkpoint's tokenizer and a program that is loaded whole",
    "control": "asks a side that runs, loaded whole",
    "save_run": "saves what a side says that runs, loaded whole",
}
"""Why an option of a check cannot be answered."""
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
    _require_possible(options, opened, other)
    if isinstance(opened, SavedRun):
        if not isinstance(other, SavedRun):
            raise InputError(f"{opened.folder} is a saved run and answers nothing else; give another run --against it")
        return check_saved(opened, other, options)
    if isinstance(opened, Engine):
        return check_engine(opened, other, options, progress=progress)
    if isinstance(opened, Path):
        opened = foreign_program(opened, other.config)
    if not options.layer_by_layer:
        return check(opened, other, options, progress)
    assert isinstance(other, Checkpoint)
    return check_layer_by_layer(opened, other, options, progress)


def _require_possible(options: CheckOptions, candidate: Candidate, other: Checkpoint | OnnxProgram | SavedRun) -> None:
    """See that nothing is asked that these two sides cannot answer: left undone unsaid it would count as done.

    Raises:
        InputError: naming the option to leave out.
    """
    whole = isinstance(candidate, Engine) or not isinstance(other, Checkpoint)
    asked = {
        "layers": whole and options.layers,
        "layer_by_layer": whole and options.layer_by_layer,
        "evidence": whole and options.evidence is not None,
        "corpus": whole and options.corpus is not None,
        "control": isinstance(candidate, SavedRun) and options.control,
        "save_run": isinstance(candidate, SavedRun) and options.save_run is not None,
    }
    if options.layer_by_layer:
        asked |= {
            "save_run": options.save_run is not None,
            "control": options.control,
            "corpus": options.corpus is not None,
        }
    name = next((name for name, impossible in asked.items() if impossible), None)
    if name is not None:
        raise InputError(f"{flag(CheckOptions, name)} {WHY[name]}; leave it out")


def open_candidate(source: str | Path | OnnxProgram | Engine) -> Candidate:
    """What is to be checked.

    Raises:
        InputError: it is nothing that can be.
    """
    if not isinstance(source, str | Path):
        return source
    path = located(source)
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
        path = located(against)
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
