"""Hidden states on disk between layers, in half precision: memory holds one row of text, whatever the corpus.

A row is stored as float16 after division by a power of two, so that values beyond 65504, which GLMs are known to
reach, lose nothing but the usual 11 bits.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor

HEADER = struct.Struct("<iii")
"""Before each row: exponent of its divisor, tokens, channels."""
LARGEST_EXPONENT = 14
"""Divided values stay below 2 ** 15, half of what float16 holds."""


class HiddenStatesWriter:
    """Writes rows; the file takes its name when all of them are in."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_suffix(".partial")
        self._file = self._partial.open("wb")

    def add(self, hidden_SH: Tensor) -> None:
        """Append one row's hidden states ``[S, H]``, finite, any float dtype."""
        # frexp: largest = m * 2 ** e with m < 1, so dividing by 2 ** (e - 15) leaves at most 2 ** 15.
        largest = float(hidden_SH.abs().max())
        exponent = max(0, math.frexp(largest)[1] - LARGEST_EXPONENT - 1)
        half = (hidden_SH.detach().float() * 2.0**-exponent).to(torch.float16).cpu().contiguous()
        self._file.write(HEADER.pack(exponent, *half.shape))
        self._file.write(half.numpy().tobytes())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        whole = False
        try:
            # Closing writes what is left, and a full disk may show only then: the file is closed all the same.
            with self._file:
                if error is None:
                    self._file.flush()
                    os.fsync(self._file.fileno())
            whole = error is None
        finally:
            if whole:
                self._partial.rename(self._path)
            else:
                self._partial.unlink(missing_ok=True)


def is_whole(path: Path) -> bool:
    """Whether a spool consists of whole rows."""
    size, place = path.stat().st_size, 0
    with path.open("rb") as file:
        while len(header := file.read(HEADER.size)) == HEADER.size:
            exponent, tokens, channels = HEADER.unpack(header)
            if exponent < 0 or tokens <= 0 or channels <= 0:
                return False
            place += HEADER.size + tokens * channels * 2
            if place > size:
                return False
            file.seek(place)
    return place == size and size > 0


def read_hidden_states(path: Path) -> Iterator[Tensor]:
    """The rows of a spool in order, float32 ``[S, H]``."""
    with path.open("rb") as file:
        while header := file.read(HEADER.size):
            exponent, tokens, channels = HEADER.unpack(header)
            half = np.frombuffer(file.read(tokens * channels * 2), np.float16).reshape(tokens, channels)
            yield torch.from_numpy(half.astype(np.float32)) * 2.0**exponent
