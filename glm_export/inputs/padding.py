"""Which columns are real where rows of different lengths stand together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def right_padded(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Integer ``[B, longest]``, 1 up to each row's length."""
    return (np.arange(lengths.max(initial=0)) < lengths[:, None]).astype(np.int64)


def left_padded(lengths: NDArray[np.int64], prefix_length: int) -> NDArray[np.bool_]:
    """Bool ``[B, longest]``, true for the prefix, and for as many of the last columns as a row has tokens behind it."""
    columns = int(lengths.max(initial=prefix_length))
    return behind_prefix(np.arange(prefix_length, columns) >= columns + prefix_length - lengths[:, None], prefix_length)


def behind_prefix(real: NDArray[np.bool_], prefix_length: int) -> NDArray[np.bool_]:
    """What is real or seen, bool ``[..., S]``, behind columns of a prefix, which always are: ``[..., P + S]``."""
    return np.pad(real, [(0, 0)] * (real.ndim - 1) + [(prefix_length, 0)], constant_values=True)
