"""What is known of the faults people make, tried on a value that differs: which change would make it right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

SAME, BETTER = 1e-3, 0.05
"""A guess holds where it brings the difference under this share of the largest value, and of what it was."""


def hints(found: NDArray[Any], expected: NDArray[Any] | None) -> list[str]:
    """Sentences about a value that differs from what the reference has.

    Args:
        found: of the program.
        expected: with as many elements; None where it is not known.
    """
    if found.dtype.kind != "f":
        return ["it tells who sees whom, and tells it otherwise than the reference"] if found.dtype == bool else []
    return list(_of_range(found, expected)) + (list(_of_order(found, expected)) if expected is not None else [])


def _of_range(found: NDArray[Any], expected: NDArray[Any] | None) -> Iterator[str]:
    lost = int((~np.isfinite(found)).sum())
    if lost:
        told = f"{lost} of {found.size} values are NaN or infinite"
        most = float(np.finfo(found.dtype).max)
        largest = float(np.abs(expected).max()) if expected is not None else 0.0
        yield (
            f"{told}: the reference reaches {largest:.4g}, {found.dtype} ends at {most:.5g}" if largest > most else told
        )
    tiny = np.finfo(found.dtype).tiny
    small = float(((found != 0) & (np.abs(found) < tiny)).mean())
    if small > 0.01:
        yield f"{small:.0%} of the values are denormal in {found.dtype}"


def _of_order(found: NDArray[Any], expected: NDArray[Any]) -> Iterator[str]:
    if found.size != expected.size or not np.isfinite(found).all():
        return
    one, other = found.reshape(-1).astype(np.float64), expected.reshape(-1).astype(np.float64)
    cared = ~np.isnan(other)
    one, other = one[cared], other[cared]
    bound = min(SAME * float(np.abs(other).max(initial=0.0)), BETTER * float(np.abs(one - other).max(initial=0.0)))
    if np.abs(np.sort(one) - np.sort(other)).max() <= bound:
        yield "the same values in another order: an axis, a layout of heads, or two inputs exchanged"
        return
    factor = float(one @ other / max(float(other @ other), 1e-30))
    if np.abs(one - factor * other).max() <= bound:
        yield f"the reference's values times {factor:.4g}"
        return
    if cared.all() and found.ndim > 1 and found.shape == expected.shape and found.shape[-1] > 1:
        yield from _by_channel(found.astype(np.float64), expected.astype(np.float64), bound)


def _by_channel(found: NDArray[Any], expected: NDArray[Any], bound: float) -> Iterator[str]:
    rows = found.reshape(-1, found.shape[-1])
    apart = rows - expected.reshape(rows.shape)
    if len(rows) > 1 and np.abs(apart - apart.mean(axis=0)).max() <= bound:
        yield "off by the same in every token: a bias is missing, or one too many"
        return
    wrong = np.flatnonzero(np.abs(apart).max(axis=0) > bound)
    if 0 < len(wrong) <= max(1, rows.shape[1] // 8):
        shown = ", ".join(map(str, wrong[:6])) + (" …" if len(wrong) > 6 else "")
        yield f"only {len(wrong)} of {rows.shape[1]} channels differ: {shown}"
    where = np.flatnonzero(np.abs(apart).max(axis=1) > bound)
    if 0 < len(where) < len(rows):
        yield f"only {len(where)} of {len(rows)} tokens differ, the first is {where[0]}"
