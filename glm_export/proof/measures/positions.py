"""Two recorded runs, column by column: where in a row, and in which layer, the error stands.

Shapes: B rows, P past columns, S new tokens, T = P + S, H heads, D head size, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from polygraphy.comparator import RunResults

from glm_export.inputs.call_layout import OwnLengths
from glm_export.spec.signature import LOGITS, is_cache_name

MOST_COLUMNS = 256
"""Of an output; a longer one is told by the worst of neighbouring columns."""
PRESENT = re.compile(r"present\.(\d+)\.(key|value)")


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionErrors:
    """The largest error of one output in one case, column by column.

    ``errors``: ``|candidate - reference|`` as a share of the output's largest reference value, the worst of rows, heads
    and dimensions; None where every row has padding, infinite where the candidate gives no numbers. Keys and values
    have past columns first, which both sides were given. ``columns_each``: neighbouring columns told by one number.
    ``layer`` and ``part`` (key, value) are None for the logits.
    """

    case: str
    output: str
    layer: int | None
    part: str | None
    errors: tuple[float | None, ...]
    past: int
    columns_each: int = 1

    @property
    def worst(self) -> float:
        """The largest of all columns."""
        return max((error for error in self.errors if error is not None), default=0.0)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def position_errors(
    results: RunResults, cases: Sequence[tuple[str, dict[str, NDArray[Any]]]]
) -> tuple[PositionErrors, ...]:
    """Compare two runs column by column; padding is not counted.

    Args:
        results: the reference, the candidate, and others that are not read, one iteration for each case; the reference
            is finite.
        cases: names and canonical inputs of the iterations.

    Returns:
        One for each output of each case; none for outputs of another shape.
    """
    (_, expected), (_, found) = list(results)[:2]
    measured: list[PositionErrors] = []
    for (name, tensors), one, other in zip(cases, expected, found, strict=True):
        real = OwnLengths.of(tensors)
        for output in (name for name in one if name in other):
            reference, candidate = (np.asarray(run[output], dtype=np.float64) for run in (one, other))
            if reference.shape == candidate.shape:
                measured.append(_errors_of(name, output, real, reference, candidate))
    return tuple(measured)


def real_columns(output: str, shape: Sequence[int], real: OwnLengths) -> NDArray[np.bool_]:
    """Which columns of an output are no padding, bool ``[B, columns]``.

    Args:
        output: its canonical name.
        shape: ``[B, K, V]`` for logits of the last K tokens, ``[B, S, H]`` for hidden states, ``[B, H, T, D]`` for
            keys and values.
        real: of the call.
    """
    return real.all if is_cache_name(output) else real.new[:, -shape[1] :]


def _errors_of(
    case: str, output: str, real: OwnLengths, reference: NDArray[np.float64], candidate: NDArray[np.float64]
) -> PositionErrors:
    scale = max(float(np.abs(reference).max()), 1e-6)
    # A candidate that gives no number there is as far away as can be.
    apart = np.where(np.isfinite(candidate), np.abs(candidate - reference), np.inf)
    apart_BT = apart.max(axis=(1, 3)) if is_cache_name(output) else apart.max(axis=2)
    real_BT = real_columns(output, reference.shape, real)
    errors_T = np.where(real_BT, apart_BT / scale, -1.0).max(axis=0)
    if output == LOGITS and len(errors_T) > 1:
        # Of the first columns nothing may be told.
        errors_T = np.pad(errors_T, (real.new.shape[1] - len(errors_T), 0), constant_values=-1.0)
    each = -(-len(errors_T) // MOST_COLUMNS)
    errors = [float(errors_T[start : start + each].max()) for start in range(0, len(errors_T), each)]
    place = PRESENT.fullmatch(output)
    return PositionErrors(
        case=case,
        output=output,
        layer=int(place[1]) if place else None,
        part=place[2] if place else None,
        errors=tuple(None if error < 0 else error for error in errors),
        columns_each=each,
        past=real.past.shape[1] if is_cache_name(output) else 0,
    )
