"""What passes between two layers, on disk: many rows of text, each replaced in place, one in memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray


class HiddenRows:
    """Values float32 ``[S, H]`` of rows of known lengths; every float of a model's dtypes is one exactly.

    Args:
        path: of the file, which is made.
        lengths: S of each row.
        channels: H.
    """

    def __init__(self, path: Path, lengths: Sequence[int], channels: int) -> None:
        self.lengths, self.channels = list(lengths), channels
        starts = np.cumsum([0, *self.lengths]) * channels * 4
        self._starts = [int(start) for start in starts]
        self._path = path
        # Read and written by calls: a mapping's pages would count as this process's memory.
        self._file: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)

    def write(self, row: int, values_SH: NDArray[Any]) -> None:
        """Put a row in its place."""
        data = np.ascontiguousarray(values_SH, np.float32).reshape(self.lengths[row], self.channels)
        view, at = data.data.cast("B"), self._starts[row]
        while view:
            written = os.pwrite(self._open, view, at)
            view, at = view[written:], at + written

    def read(self, row: int) -> NDArray[np.float32]:
        """A row as it was last written, ``[S, H]``."""
        values = np.empty((self.lengths[row], self.channels), np.float32)
        view, at = values.data.cast("B"), self._starts[row]
        while view:
            count = os.preadv(self._open, [view], at)
            if count == 0:
                raise EOFError(f"row {row} should have been written, found the end of the file")
            view, at = view[count:], at + count
        return values

    @property
    def _open(self) -> int:
        assert self._file is not None, "hidden states are read and written before they are closed"
        return self._file

    def close(self) -> None:
        """Remove the file; once is enough."""
        if self._file is not None:
            os.close(self._file)
            self._path.unlink()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
