"""Which rows of a batch are meant."""

from __future__ import annotations

from collections.abc import Iterable

from glm_export.errors import InputError


def rows_there(batch: int, rows: Iterable[int]) -> list[int]:
    """The same rows, each of which is one of the batch.

    Raises:
        InputError: one is not.
    """
    chosen = list(rows)
    strange = sorted({row for row in chosen if not 0 <= row < batch})
    if strange:
        raise InputError(f"rows {strange} are not there; the batch has {batch}, counted from 0")
    return chosen


def rows_staying(batch: int, leaving: Iterable[int]) -> list[int]:
    """The rows of a batch without some, in their order.

    Raises:
        InputError: one that leaves is not there.
    """
    gone = set(rows_there(batch, leaving))
    return [row for row in range(batch) if row not in gone]
