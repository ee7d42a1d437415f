"""Logits that are no numbers end a run: where it happened, and the way out."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from glm_export.errors import NonFiniteError
from glm_export.sessions.session import Logits, Session, SessionDescription


def require_finite(session: Session, logits_BV: Logits, step: int, rows: Iterable[int] | None = None) -> None:
    """See that a token can be chosen for each row.

    Args:
        session: whose logits they are.
        logits_BV: float32 ``[B, V]``.
        step: of the token to be chosen, from 1 on; the first follows the prompt.
        rows: those still written; all of them where None.

    Raises:
        NonFiniteError: naming step, row and what to do.
    """
    lost = set(lost_rows(logits_BV)) & set(range(len(logits_BV)) if rows is None else rows)
    if lost:
        row = min(lost)
        raise not_finite(session.describe(), place_of(step, row), logits_BV[row])


def place_of(step: int, row: int) -> str:
    """Where it happened, in words."""
    return f"step {step}{' (the prompt)' if step == 1 else ''}, row {row}"


def lost_rows(logits_BV: Logits) -> list[int]:
    """Rows that are no distribution: NaN or infinity in them. Minus infinity alone is a probability of 0."""
    # NaN comes out of max as it went in.
    return np.flatnonzero(~np.isfinite(logits_BV.max(axis=-1))).tolist()


def not_finite(described: SessionDescription, place: str, logits_V: Logits) -> NonFiniteError:
    """The error for one row's logits, ``[V]`` or ``[S, V]``."""
    return not_finite_by_name(described, place, "NaN" if np.isnan(logits_V).any() else "infinite")


def not_finite_by_name(described: SessionDescription, place: str, found: str) -> NonFiniteError:
    """The error where what was found is known by name: NaN or infinite."""
    model = " ".join(filter(None, (described.runtime, described.dialect, described.dtype)))
    return NonFiniteError(f"{place}: logits should be numbers, found {found} ({model}); {way_out(described)}")


def way_out(described: SessionDescription) -> str:
    """What to do about a model that computes no numbers."""
    if described.dtype != "float16":
        return (
            "the weights may hold NaN, infinity or values that overflow: export names a tensor that is not finite, and "
            "check shows whether the checkpoint computes numbers"
        )
    if described.dialect is None:
        return "float16 ends at 65504, and the model exceeds it: run it in bfloat16 or float32 (--reference-dtype)"
    return (
        "float16 ends at 65504, and the model exceeds it: export again with --ranges (calibrate on text like this), "
        "which keeps in float32 what would overflow, or with --dtype bfloat16 or float32"
    )
