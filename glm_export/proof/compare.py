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
from glm_export.spec.signature import LOGITS

TOLERANCES = {
    "float32": 1e-5,
    "float16": 8e-3,
    "bfloat16": 6e-2,
}
"""Largest allowed difference, as a share of the output's largest reference value.

float32: 1e-4 on logits of scale 10. The publishers' own code differs from itself in float64 by 0.6-1.4e-5 there, and
the mildest real defect known (an inverse frequency rounded to float16) by 3e-3.
float16, bfloat16: eight units in the last place (2^-10, 2^-7) of the largest value; measured on the golden models:
one unit.
"""


class EmptyComparisonError(GlmExportError):
    """Two runs have nothing in common to compare; that is never a pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputParity:
    """One output in one case.

    ``max_abs`` and ``scale`` are in the output's units; ``max_rel`` is the largest relative difference where the
    reference is not tiny; ``required_tolerance`` is the smallest that passes, in the units of :data:`TOLERANCES`.
    ``top1`` is the share of rows with the same likeliest token (logits only). ``finite``: whether the candidate's
    values are numbers; the reference's always are.
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

    def to_json(self) -> dict[str, Any]:
        """Plain values; ``needed`` is :attr:`required_tolerance`, under the name reports have had from the start."""
        values = asdict(self)
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


def compare_runs(results: RunResults, cases: Sequence[str], dtype: str, tolerance: float = 0.0) -> ParityReport:
    """Compare the second runner's outputs with the first one's.

    Args:
        results: two runners, one iteration for each case.
        cases: names of the iterations.
        dtype: picks the tolerance.
        tolerance: where the program allows itself more than its dtype does.

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
    outputs = [
        output
        for case, one, other in zip(cases, expected, found, strict=True)
        for output in _compare_case(case, one, other, tolerance)
    ]
    return ParityReport(reference=reference, candidate=candidate, dtype=dtype, outputs=tuple(outputs))


def _compare_case(
    case: str, expected: IterationResult, found: IterationResult, tolerance: float
) -> Iterable[OutputParity]:
    if set(expected) != set(found) or not set(expected):
        different = sorted(set(expected) ^ set(found))
        raise EmptyComparisonError(f"case {case}: both runs must have the same outputs; only one has {different}")
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
            top1=_top1(reference, candidate) if name == LOGITS and same_shape else None,
            finite=bool(np.isfinite(candidate).all()),
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


def _top1(reference: NDArray[np.float64], candidate: NDArray[np.float64]) -> float:
    return float((reference.argmax(axis=-1) == candidate.argmax(axis=-1)).mean())
