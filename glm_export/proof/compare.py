"""Two recorded runs -> ParityReport: what differs, by how much, and which tolerance would have passed.

Runs are Polygraphy ``RunResults`` (which can be saved and loaded); the comparison is Polygraphy's, output by output,
with a tolerance relative to the largest reference value of that output.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from polygraphy.comparator import CompareFunc, IterationResult, RunResults
from polygraphy.logger import G_LOGGER

from glm_export.errors import GlmExportError
from glm_export.inputs.call_layout import OwnLengths
from glm_export.proof.measures.positions import real_columns
from glm_export.spec.signature import HIDDEN, LOGITS, is_cache_name, output_kind

TOLERANCES = {
    "float32": 1e-5,
    "float16": 8e-3,
    "bfloat16": 6e-2,
}
"""Largest allowed difference, as a share of the output's largest reference value; :data:`REASONS` says why."""
REASONS = {
    "float32": (
        "1e-4 on logits of scale 10: the publishers' own code differs from itself in float64 by 0.6-1.4e-5 there, and "
        "the mildest real defect known (an inverse frequency rounded to float16) by 3e-3."
    ),
    "float16": ("Eight units in the last place (2^-10) of the largest value; measured on the golden models: one unit."),
    "bfloat16": ("Eight units in the last place (2^-7) of the largest value; measured on the golden models: one unit."),
}
"""Of each tolerance, for people."""
BEGINNING_TOLERANCES = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 1e-2, "int8": 1e-2}
"""How far an initial cache may be off, as a share of the largest value: nothing was computed yet, so by one unit in the
last place of its dtype, and for integers by one step of 127."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a measure reads where a known defect is planted. ``value``: in the measure's units."""

    value: float
    what: str


MILDEST, SEEN = "rotary tables rounded to float16", "padding that real tokens see"
PLANTED = {
    "case": Reading(3.5e-4, MILDEST),
    "batch": Reading(1.2, SEEN),
    "usual": Reading(3.1e-4, MILDEST),
    "greedy": Reading(6, "half-split rotary, of 192 tokens"),
    "company": Reading(0.74, SEEN),
}
"""By what is claimed, so that a reader sees how far a bound is from a fault: read on float32 programs of the embedded
model in dialect ``onnx``, and again by ``tests/proof/measures/test_planted.py``. Rounded tables are the mildest of five
defects; half-split rotary reads 1.9 in every case."""


class EmptyComparisonError(GlmExportError):
    """Two runs have nothing in common to compare; that is never a pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputParity:
    """One output in one case.

    ``max_abs`` and ``scale`` are in the output's units; ``max_rel`` is the largest relative difference where the
    reference is not tiny; ``required_tolerance`` is the smallest that passes, in the units of :data:`TOLERANCES`.
    ``finite``: whether the candidate's values are numbers; the reference's always are. All of them are judged, padding
    as well where the program computes it.

    Of real tokens alone: ``top1`` is the share with the same likeliest token (logits only). ``cosine`` of the angle
    between both sides' values as vectors. ``signal_to_noise``: the reference's energy over the error's, in decibels;
    infinite where nothing differs. Both are None where the candidate has no numbers.
    """

    case: str
    output: str
    elements: int
    scale: float
    max_abs: float
    max_rel: float
    required_tolerance: float
    tolerance: float
    passed: bool
    top1: float | None = None
    finite: bool = True
    cosine: float | None = None
    signal_to_noise: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values; ``needed`` is :attr:`required_tolerance`, under the name reports have had from the start."""
        values = asdict(self)
        if self.signal_to_noise == float("inf"):  # which JSON has not; where nothing differs
            values["signal_to_noise"] = "Infinity"
        return {"needed" if name == "required_tolerance" else name: value for name, value in values.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityReport:
    """Everything that was compared. ``passed`` needs every output to pass."""

    reference: str
    candidate: str
    dtype: str
    outputs: tuple[OutputParity, ...]

    @property
    def passed(self) -> bool:
        """Whether every output is within its tolerance."""
        return all(output.passed for output in self.outputs)

    @property
    def required_tolerance(self) -> float:
        """The smallest tolerance that would have passed everything."""
        return max(output.required_tolerance for output in self.outputs)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "reference": self.reference, "candidate": self.candidate, "dtype": self.dtype, "passed": self.passed,
            "smallest_passing_tolerance": self.required_tolerance,
            "outputs": [output.to_json() for output in self.outputs],
        }  # fmt: skip


def compare_runs(
    results: RunResults,
    cases: Sequence[str],
    dtype: str,
    tolerance: float = 0.0,
    real: Sequence[OwnLengths] = (),
) -> ParityReport:
    """Compare the second runner's outputs with the first one's.

    Args:
        results: two runners, one iteration for each case.
        cases: names of the iterations.
        dtype: picks the tolerance.
        tolerance: where the program allows itself more than its dtype does.
        real: which columns of each case are no padding; without it all are taken for real.

    Raises:
        EmptyComparisonError: fewer than two runs, no iteration, outputs that do not match up, or a reference that
            is not finite.
    """
    if len(results) != 2:
        raise EmptyComparisonError(f"a comparison needs two runs, found {len(results)}")
    (reference, expected), (candidate, found) = results
    if not cases or not len(expected) == len(found) == len(cases):
        raise EmptyComparisonError(
            f"expected {len(cases)} cases in both runs, found {len(expected)} and {len(found)}; nothing was compared"
        )
    tolerance = max(tolerance, TOLERANCES[dtype])
    columns_of: Sequence[OwnLengths | None] = real or [None] * len(cases)
    outputs = [
        output
        for case, one, other, columns in zip(cases, expected, found, columns_of, strict=True)
        for output in _compare_case(case, one, other, tolerance, columns)
    ]
    return ParityReport(reference=reference, candidate=candidate, dtype=dtype, outputs=tuple(outputs))


def _compare_case(
    case: str, expected: IterationResult, found: IterationResult, tolerance: float, real: OwnLengths | None
) -> Iterable[OutputParity]:
    # Hidden states are said by a program that was asked for them: the other side may be none.
    different = sorted(name for name in set(expected) ^ set(found) if output_kind(name) != HIDDEN)
    if different or LOGITS not in expected:
        raise EmptyComparisonError(f"case {case}: both runs must have the same outputs; only one has {different}")
    expected, found = (
        IterationResult({name: one[name] for name in one if name in other}, one.runtime, one.runner_name)
        for one, other in ((expected, found), (found, expected))
    )
    references = {name: np.asarray(expected[name], dtype=np.float64) for name in expected}
    for name, array in references.items():
        _require_comparable(case, name, array, found[name])
    scales = {name: max(float(np.abs(array).max()), 1e-6) for name, array in references.items()}
    compare = CompareFunc.simple(
        check_error_stat="max", rtol=0.0, atol={name: tolerance * scale for name, scale in scales.items()}
    )
    # A candidate that is not finite is judged below; Polygraphy divides by it first.
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL), np.errstate(invalid="ignore", over="ignore"):
        verdicts = compare(expected, found)
    for name, reference in references.items():
        candidate = np.asarray(found[name], dtype=np.float64)
        same_shape = candidate.shape == reference.shape
        finite = same_shape and bool(np.isfinite(candidate).all())
        max_abs = float(np.abs(candidate - reference).max(initial=0.0)) if finite else float("inf")
        yield OutputParity(
            case=case, output=name, elements=reference.size, scale=scales[name], max_abs=max_abs,
            max_rel=_max_rel(reference, candidate, scales[name]) if finite else float("inf"),
            required_tolerance=max_abs / scales[name], tolerance=tolerance, passed=finite and bool(verdicts[name]),
            finite=bool(np.isfinite(candidate).all()),
            **(_of_real_tokens(name, reference, candidate, real) if same_shape else {}),
        )  # fmt: skip


def _require_comparable(case: str, name: str, reference: NDArray[np.float64], found: Any) -> None:
    if not reference.size:
        raise EmptyComparisonError("an output has no elements; nothing was compared")
    if not np.isfinite(reference).all():
        beside = "is finite" if np.isfinite(np.asarray(found, dtype=np.float64)).all() else "is not finite either"
        raise EmptyComparisonError(
            f"the reference is not finite in case {case!r}, output {name} (the other side {beside}), so nothing was "
            "proven: take --reference-dtype float32, and where it is that already, see with export which of the "
            "checkpoint's tensors is not finite"
        )


def _max_rel(reference: NDArray[np.float64], candidate: NDArray[np.float64], scale: float) -> float:
    # Relative to values that matter: near zero any rounding is a large share.
    floor = np.maximum(np.abs(reference), scale * 1e-3)
    return float((np.abs(candidate - reference) / floor).max())


def _of_real_tokens(
    name: str, reference: NDArray[np.float64], candidate: NDArray[np.float64], real: OwnLengths | None
) -> dict[str, float]:
    """What padding has no part in, by the names of :class:`OutputParity`."""
    if real is not None:
        columns = real_columns(name, reference.shape, real)
        # [B, S, V], or [B, H, T, D] with its columns in front of the heads.
        reference, candidate = (
            (array.swapaxes(1, 2) if is_cache_name(name) else array)[columns] for array in (reference, candidate)
        )
    figures = {"top1": _top1(reference, candidate)} if name == LOGITS else {}
    if not np.isfinite(candidate).all():
        return figures
    energy, noise = float(np.square(reference).sum()), float(np.square(candidate - reference).sum())
    lengths = np.sqrt(energy * float(np.square(candidate).sum()))
    return figures | {
        # Two vectors of zeros point the same way.
        "cosine": float((reference * candidate).sum() / lengths) if lengths else float(noise == 0),
        "signal_to_noise": _decibels(energy / noise) if noise else float("inf"),
    }


def _decibels(ratio: float) -> float:
    return 10 * float(np.log10(ratio)) if ratio else float("-inf")


def _top1(reference: NDArray[np.float64], candidate: NDArray[np.float64]) -> float:
    return float((reference.argmax(axis=-1) == candidate.argmax(axis=-1)).mean())
