"""The side a program is held to, whatever kind it is of."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from glm_export.artifacts.program import OnnxProgram
from glm_export.calibration.quantization import Quantization
from glm_export.checkpoints.checkpoint import Checkpoint
from glm_export.errors import InputError
from glm_export.proof.origin import require_same_checkpoint
from glm_export.proof.sides.foreign import FOREIGN
from glm_export.proof.sides.saved_run import SavedRun
from glm_export.sessions.onnxruntime.session import OrtSession
from glm_export.sessions.session import Session
from glm_export.sessions.torch import TorchSession
from glm_export.spec.config import GlmConfig

SIZES = ("vocab_size", "num_layers", "hidden_size", "num_heads", "kv_heads", "head_dim", "prefix_mask", "prefix_length")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What speaks, under which name, computing in which dtype, rounding by which recipe."""

    said_by: Session | SavedRun
    name: str
    dtype: str
    recipe: str | None


def open_reference(
    program: OnnxProgram,
    against: Checkpoint | OnnxProgram | SavedRun,
    dtype: str,
    quantization: Quantization | None,
    stack: ExitStack,
) -> Reference:
    """Open the side a program is held to.

    Args:
        program: what is checked.
        against: the other side.
        dtype: of a checkpoint's reference.
        quantization: what such a reference rounds by.
        stack: closes what is opened.

    Raises:
        InputError: it is another model's.
    """
    if isinstance(against, Checkpoint):
        if program.dialect != FOREIGN:
            require_same_checkpoint(program, against)
        # As many hidden states as the program says.
        told = program.signature.hidden_states
        kind = None if not told else "last" if len(told) == 1 else "all"
        session = stack.enter_context(TorchSession(against, dtype, quantization=quantization, hidden_states=kind))
        return Reference(said_by=session, name="pytorch", dtype=dtype, recipe=program.recipe)
    if isinstance(against, SavedRun):
        return saved_reference(program, against)
    require_same_sizes(program.config, against.config, f"{program.folder} and {against.folder}")
    other = stack.enter_context(OrtSession(against))
    return Reference(
        said_by=other, name=f"onnxruntime of {against.folder.name}", dtype=against.dtype, recipe=against.recipe
    )


def saved_reference(program: OnnxProgram, run: SavedRun) -> Reference:
    """A run that was saved, as the side a program is held to.

    Raises:
        InputError: it is another model's.
    """
    require_same_sizes(program.config, run.config, f"{program.folder} and {run.folder}")
    return Reference(said_by=run, name=f"{run.name}, saved", dtype=run.dtype, recipe=run.recipe)


def require_same_sizes(one: GlmConfig, other: GlmConfig, sides: str) -> None:
    """See that two sides can be asked the same.

    Raises:
        InputError: naming the size that differs.
    """
    for name in SIZES:
        if getattr(one, name) != getattr(other, name):
            raise InputError(
                f"{sides} should be the same model, and {name} is {getattr(one, name)} and {getattr(other, name)}; "
                "give two of one checkpoint"
            )
