"""Reference and program side by side through the layers: what each layer adds to the error, and what has come together.

Every layer is run twice: on what the reference puts in, which shows its own error and no other's, and on what the
program itself has come to. Shapes: B batch, S new tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from glm_export.graphs.slices import Crossing, Meaning, Slice
from glm_export.inputs.call_layout import OwnLengths
from glm_export.progress import NullProgress, Progress
from glm_export.proof.cases import Case
from glm_export.proof.layers.program import SlicedProgram, Values
from glm_export.proof.layers.reference import LayerCall, LayeredReference
from glm_export.sessions.onnxruntime.slices import PartSession
from glm_export.sessions.session import Tensors
from glm_export.sessions.torch import numpy_of
from glm_export.spec.signature import INPUT_IDS, LOGITS, present_names
from glm_export.spec.weight_formats import PROMPT_TOKENS

HEAD = "head"
SMALLEST_SCALE = 1e-6
NO_POSITIONS: NDArray[np.float64] = np.zeros(0)
MAIN = (Meaning.HIDDEN.value, Meaning.NORMED.value, LOGITS)
"""What a slice is for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceError:
    """How far one slice is off in one case, as shares of the reference's largest value there; infinite where no number.

    ``alone``: by name of what it puts out (``hidden``, ``normed``, ``key``, ``value``, ``logits``), on the reference's
    input. ``together``: the same on what the program itself has come to. ``positions``: of its main output alone, the
    worst of all rows and channels at each of S places.
    """

    slice: str
    case: str
    alone: dict[str, float]
    together: dict[str, float]
    positions: tuple[float, ...]

    @property
    def worst(self) -> float:
        """The largest of :attr:`alone`."""
        return max(self.alone.values())


@dataclass(slots=True)
class CaseState:
    """Where one case stands between two slices. ``own``: what the program has come to, by the names of its values."""

    case: Case
    call: LayerCall
    hidden_BSH: Tensor
    normed_BSH: Tensor | None = None
    own: Values = field(default_factory=dict)
    expected: Tensors = field(default_factory=dict)
    found: Tensors = field(default_factory=dict)

    def crossing(self, crossing: Crossing, program: SlicedProgram) -> NDArray[Any]:
        """What the reference has for a value between slices, where the program has it."""
        value = self.hidden_BSH if crossing.meaning is Meaning.HIDDEN else self.normed_BSH
        assert value is not None
        return program.packed(numpy_of(value), self.case.tensors)

    def given(self, part: Slice, program: SlicedProgram) -> Values:
        """What a slice reads, from the reference."""
        # Beyond float16's range it is infinite, and what comes of it is shown as such.
        with np.errstate(over="ignore"):
            read = {c.value: self.crossing(c, program).astype(program.numpy_type(c.value)) for c in part.inputs}
        return program.given(self.case.tensors) | read


@dataclass(frozen=True, slots=True, kw_only=True)
class Walked:
    """All errors, slice by slice, and both sides' outputs of each case, in the canonical layout."""

    errors: tuple[SliceError, ...]
    expected: tuple[Tensors, ...]
    found: tuple[Tensors, ...]


def walk(
    reference: LayeredReference, program: SlicedProgram, cases: Sequence[Case], progress: Progress | None = None
) -> Walked:
    """Go through all slices once, all cases together, one slice in memory.

    Args:
        reference: one layer at a time.
        program: the same.
        cases: calls in the canonical layout.
        progress: shows how far it is.
    """
    states = [CaseState(case, *reference.enter(case.tensors)) for case in cases]
    errors: list[SliceError] = []
    advance = (progress or NullProgress()).task("layers", len(program.slices))
    for part in program.slices:
        given = [state.given(part, program) for state in states]
        reference_step(reference, part, states)
        loaded = program.load(part)
        for state, tensors in zip(states, given, strict=True):
            errors.append(_compare(program, part, loaded, state, tensors))
        # Before the next layer of either side is read: memory holds one.
        del loaded
        advance(1)
    return Walked(
        errors=tuple(errors),
        expected=tuple(state.expected for state in states),
        found=tuple(state.found for state in states),
    )


def reference_step(reference: LayeredReference, part: Slice, states: Sequence[CaseState]) -> None:
    """Let the reference come to where a slice ends, in every case."""
    if part.name == HEAD:
        for state, logits_BSV in zip(states, reference.logits([s.hidden_BSH for s in states]), strict=True):
            state.expected[LOGITS] = logits_BSV
        return
    if part.layer is not None:
        _through_layer(reference, part.layer, states)
    if any(crossing.meaning is Meaning.NORMED for crossing in part.outputs):
        layer = -1 if part.layer is None else part.layer
        for state, normed_BSH in zip(states, reference.normed(layer, [s.hidden_BSH for s in states]), strict=True):
            state.normed_BSH = normed_BSH


def _through_layer(reference: LayeredReference, index: int, states: Sequence[CaseState]) -> None:
    # A recipe may compute prompts otherwise than single tokens: a layer is loaded once for each kind.
    for long in (False, True):
        group = [s for s in states if (s.case.tensors[INPUT_IDS].size > PROMPT_TOKENS) is long]
        if not group:
            continue
        with reference.layer(index, PROMPT_TOKENS + 1 if long else 1) as layer:
            for state in group:
                call = state.call
                state.hidden_BSH, present = layer(state.hidden_BSH, call.rotary, call.mask_B1ST, call.past(index))
                state.expected |= zip(present_names(index), map(numpy_of, present), strict=True)


def _compare(program: SlicedProgram, part: Slice, loaded: PartSession, state: CaseState, given: Values) -> SliceError:
    alone = loaded.run(given)
    together = loaded.run(program.given(state.case.tensors) | state.own) if part.inputs else alone
    positions, alone_errors = NO_POSITIONS, {}
    for name, (error_BS, _) in _errors(program, part, state, alone).items():
        alone_errors[name] = float(error_BS.max())
        positions = error_BS.max(axis=0) if name in MAIN else positions
    own = _errors(program, part, state, together)
    state.own = {crossing.value: together[crossing.value] for crossing in part.outputs}
    state.found |= {value: array for _, (_, (value, array)) in own.items() if value in state.expected}
    return SliceError(
        slice=part.name,
        case=state.case.name,
        alone=alone_errors,
        together={name: float(error_BS.max()) for name, (error_BS, _) in own.items()},
        positions=tuple(map(float, positions)),
    )


def _errors(
    program: SlicedProgram, part: Slice, state: CaseState, outputs: Values
) -> dict[str, tuple[NDArray[np.float64], tuple[str, NDArray[Any]]]]:
    """By what a slice puts out: errors ``[B, S]`` (of keys and values ``[B, T]``), and the value it is about."""
    found, tensors = {}, state.case.tensors
    for crossing in part.outputs:
        array = outputs[crossing.value]
        error_BS = relative(state.crossing(crossing, program), array, program.real(tensors))
        found[crossing.meaning.value] = (error_BS, (crossing.value, array))
    rows = OwnLengths.of(tensors)
    names = dict(zip(present_names(part.layer or 0), ("key", "value"), strict=True)) | {LOGITS: LOGITS}
    canonical = program.layout.to_canonical({name: outputs[name] for name in part.presents}, tensors)
    for value, array in canonical.items():
        expected, real = state.expected[value], rows.new
        if value != LOGITS:
            error_BS = relative(expected.swapaxes(1, 2), array.swapaxes(1, 2), rows.all)
        else:
            told = program.program.signature.told_logits(expected.shape[1])
            error_BS = relative(expected[:, -told:], array, real[:, -told:])
        found[names[value]] = (error_BS, (value, array))
    return found


def relative(expected: NDArray[Any], found: NDArray[Any], real: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Largest difference at each real place, as a share of the largest value expected at any; infinite without numbers.

    Args:
        expected: ``[B, S, …]``.
        found: the same; any other shape is infinitely far.
        real: ``[B, S]``.
    """
    if expected.shape != found.shape:
        return np.where(real, np.inf, 0.0)
    axes = tuple(range(2, expected.ndim))
    scale = max(float(np.abs(expected[real].astype(np.float64)).max(initial=0.0)), SMALLEST_SCALE)
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.abs(expected.astype(np.float64) - found.astype(np.float64)).max(axis=axes, initial=0.0) / scale
    return np.where(real, np.nan_to_num(apart, nan=np.inf, posinf=np.inf), 0.0)
