"""Broken variants of the side that is checked, each of which the check must notice: else its pass proves nothing.

Some are asked otherwise than the reference was, as by a runtime that mistakes a cache, a mask or a place; others are
the program's own graph with one mistake exporters are known for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
from polygraphy.comparator import IterationResult, RunResults

from glm_export.artifacts.program import OnnxProgram
from glm_export.errors import ComparisonFailedError
from glm_export.inputs.call_layout import CallLayout, OwnLengths
from glm_export.progress import NullProgress, Progress
from glm_export.proof.cases import Case
from glm_export.proof.compare import compare_runs
from glm_export.proof.runners import Runs, as_the_program_says
from glm_export.sessions.onnxruntime.slices import PartSession
from glm_export.sessions.session import Tensors
from glm_export.spec.signature import ATTENTION_MASK, POSITION_IDS, past_names

Asked = Callable[[Tensors, int], Tensors | None]
"""Another call in place of one, for so many layers; None where that would be the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """One broken variant. ``needed``: the tolerance that would have passed its worst case; ``bound``: allowed."""

    name: str
    case: str
    needed: float
    bound: float

    @property
    def noticed(self) -> bool:
        """Whether the check fails it, as it must."""
        return not self.needed <= self.bound

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"noticed": self.noticed}


def _half_positions(tensors: Tensors, _: int) -> Tensors | None:
    positions = tensors[POSITION_IDS]
    # Alike for every token, rotations would cancel.
    return tensors | {POSITION_IDS: positions // 2} if positions.max() > 0 else None


def _padding_seen(tensors: Tensors, _: int) -> Tensors | None:
    mask = tensors[ATTENTION_MASK]
    return None if OwnLengths.of(tensors).all.all() else tensors | {ATTENTION_MASK: np.ones_like(mask)}


def _exchanged(tensors: Tensors, layers: int) -> Tensors | None:
    if not tensors[past_names(0)[0]].shape[2]:
        return None
    changed = dict(tensors)
    for layer in range(layers):
        key, value = past_names(layer)
        changed[key], changed[value] = tensors[value], tensors[key]
    return changed


def _stale(tensors: Tensors, layers: int) -> Tensors | None:
    """The last layer reads what the one before it keeps."""
    if not tensors[past_names(0)[0]].shape[2] or layers < 2:
        return None
    pairs = zip(past_names(layers - 1), past_names(layers - 2), strict=True)
    return tensors | {name: tensors[stale] for name, stale in pairs}


def _neighbours(tensors: Tensors, layers: int) -> Tensors | None:
    if not tensors[past_names(0)[0]].shape[2] or len(tensors[past_names(0)[0]]) < 2:
        return None
    names = [name for layer in range(layers) for name in past_names(layer)]
    return tensors | {name: np.ascontiguousarray(tensors[name][::-1]) for name in names}


ASKED: dict[str, Asked] = {
    "positions at half their place": _half_positions,
    "padding is seen": _padding_seen,
    "keys and values exchanged": _exchanged,
    "a stale layer's cache": _stale,
    "a neighbour's cache": _neighbours,
}


def _half_split(model: onnx.ModelProto) -> bool:
    changed = False
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name in ("interleaved", "rotary_interleaved"):
                attribute.i, changed = 1 - attribute.i, True
    return changed


def _scaled(model: onnx.ModelProto) -> bool:
    """Scores are not divided by the root of the head size."""
    changed = False
    for node in model.graph.node:
        if node.op_type in ("Attention", "GroupQueryAttention"):
            kept = [attribute for attribute in node.attribute if attribute.name != "scale"]
            del node.attribute[:]
            node.attribute.extend([*kept, onnx.helper.make_attribute("scale", 1.0)])
            changed = True
    return changed


GRAPHS: dict[str, Callable[[onnx.ModelProto], bool]] = {"half-split rotary": _half_split, "unscaled scores": _scaled}


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What was asked and answered: ``results``, whose first run is the reference's, and the bound they are held to.

    ``dtype`` and ``tolerance``: as of :func:`glm_export.proof.compare.compare_runs`.
    """

    results: RunResults
    cases: Sequence[Case]
    program: OnnxProgram
    dtype: str
    tolerance: float


def run_controls(
    question: Question, candidate: Runs, layout: CallLayout | None = None, progress: Progress | None = None
) -> tuple[Control, ...]:
    """Ask the broken variants what was asked of the side that is checked.

    Args:
        question: that was answered.
        candidate: answers in the canonical layout.
        layout: of a program whose graph can be changed, by ONNX Runtime; None for an engine.
        progress: shows variants, each asked every case.

    Returns:
        Those that apply: where positions are counted none are told, and without padding none is seen.
    """
    program = question.program
    signature, found = program.signature, []
    counted = signature.counts_positions or (signature.own_lengths and not signature.prefix_mask)
    advance = (progress or NullProgress()).task("controls", len(ASKED) + (len(GRAPHS) if layout is not None else 0))
    for name, change in ASKED.items():
        if change is not _half_positions or not counted:
            asked = [change(case.tensors, program.config.num_layers) for case in question.cases]
            found.append(_control(name, question, candidate, asked))
        advance(1)
    for name, broken in _broken_graphs(program, layout) if layout is not None else ():
        if broken is not None:
            found.append(_control(name, question, broken, [case.tensors for case in question.cases]))
        advance(1)
    return tuple(control for control in found if control is not None)


def _control(name: str, question: Question, candidate: Runs, asked: Sequence[Tensors | None]) -> Control | None:
    """The variant's worst case; None where nothing it is asked is another call."""
    (reference, said), _ = list(question.results)[:2]
    expected, found, names, real = [], [], [], []
    for case, right, tensors in zip(question.cases, said, asked, strict=True):
        if tensors is None:
            continue
        try:
            outputs = as_the_program_says(candidate.run(tensors), case.tensors, question.program)
        except ComparisonFailedError:
            # It stops: noticed as well as can be.
            return Control(name=name, case=case.name, needed=float("inf"), bound=question.tolerance)
        expected.append(right)
        found.append(IterationResult({key: np.ascontiguousarray(a) for key, a in outputs.items()}, 0.0, name))
        names.append(case.name)
        real.append(OwnLengths.of(case.tensors))
    if not names:
        return None
    runs = RunResults([(reference, expected), (name, found)])
    parity = compare_runs(runs, names, question.dtype, question.tolerance, real)
    worst = max(parity.outputs, key=lambda output: output.required_tolerance)
    return Control(name=name, case=worst.case, needed=worst.required_tolerance, bound=worst.tolerance)


class _BrokenGraph:
    """A program whose graph was changed, its weights as they are."""

    def __init__(self, model: onnx.ModelProto, program: OnnxProgram, layout: CallLayout) -> None:
        self._layout = layout
        self._session = PartSession(model.SerializeToString(), program)

    def run(self, tensors: Tensors) -> Tensors:
        """One call in the canonical layout."""
        outputs = self._session.run(self._layout.to_program(tensors))
        return self._layout.to_canonical(outputs, tensors)


def _broken_graphs(program: OnnxProgram, layout: CallLayout) -> Iterator[tuple[str, _BrokenGraph | None]]:
    """None where a graph has nothing of the kind that is broken."""
    for name, change in GRAPHS.items():
        model = onnx.load(str(program.model_path), load_external_data=False)
        yield name, _BrokenGraph(model, program, layout) if change(model) else None
