"""Where an official tensor comes from: a stored one, mapped; or several, worked out when it is read."""

from __future__ import annotations

import logging
import math
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from glm_export.spec.weight_map import Shape

SPOOLED_BYTES = 32 << 20
"""Computed tensors from this size on lie in a temporary file where they are read once and let go."""
logger = logging.getLogger(__name__)
PIECE_ELEMENTS = 1 << 22
"""What is worked out at a time: 16 MiB in float32."""


class TensorSource(Protocol):
    """One official tensor before it is read."""

    @property
    def path(self) -> Path:
        """The file it lies in, or most of it."""

    @property
    def kind(self) -> str:
        """What is stored, in a word or two: a dtype, a way of quantizing."""

    @property
    def shape(self) -> Shape:
        """Of what is read."""

    @property
    def dtype(self) -> torch.dtype:
        """What is read unless another is asked for."""

    def rows(self, start: int, stop: int) -> Tensor:
        """Some of the leading axis, float32."""

    def read(self, dtype: torch.dtype | None = None, *, spooled: bool = False) -> Tensor:
        """The whole tensor: a stored one as it lies in its file, whatever is asked for; a computed one in ``dtype``.

        ``spooled``: a large computed one lies in a temporary file, mapped, in place of memory.
        """


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredTensor:
    """A tensor of a weight file, mapped, or a part of one: ``stored`` is its name there."""

    path: Path
    stored: str
    tensor: Tensor

    @property
    def kind(self) -> str:
        """The dtype."""
        return str(self.tensor.dtype).removeprefix("torch.")

    @property
    def shape(self) -> Shape:
        """As stored."""
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> torch.dtype:
        """As stored."""
        return self.tensor.dtype

    def rows(self, start: int, stop: int) -> Tensor:
        """Some of the leading axis, float32."""
        return self.tensor[start:stop].float()

    def read(self, dtype: torch.dtype | None = None, *, spooled: bool = False) -> Tensor:  # noqa: ARG002 - a view
        """The view of the file."""
        return self.tensor


class ComputedTensor(ABC):
    """A tensor worked out from stored ones, in float32, some rows at a time, and rounded once.

    ``shape`` has one axis or two. Memory is that of the result, where it is not spooled, and of :data:`PIECE_ELEMENTS`.
    """

    path: Path
    shape: Shape
    kind: str

    @property
    def dtype(self) -> torch.dtype:
        """What it is computed in."""
        return torch.float32

    @abstractmethod
    def rows(self, start: int, stop: int) -> Tensor:
        """Some of the leading axis, float32."""

    def read(self, dtype: torch.dtype | None = None, *, spooled: bool = False) -> Tensor:
        """All rows, rounded to ``dtype``, float32 where none is given."""
        whole = (_spool if spooled else torch.empty)(self.shape, dtype=dtype or torch.float32)
        for start, stop in row_pieces(self.shape):
            whole[start:stop] = self.rows(start, stop)
        return whole


def _spool(shape: Shape, *, dtype: torch.dtype) -> Tensor:
    """An empty tensor in a temporary file without a name, which the kernel may write out; a small one in memory."""
    count = math.prod(shape)
    size = count * dtype.itemsize
    if size < SPOOLED_BYTES:
        return torch.empty(shape, dtype=dtype)
    with tempfile.NamedTemporaryFile(prefix="glm-export-weight-") as file:
        try:
            # Reserved first: on a full disk a write to the mapping would end the process.
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError:
            logger.info("no room for %d bytes in %s: the weight is worked out in memory", size, file.name)
            return torch.empty(shape, dtype=dtype)
        return torch.from_file(file.name, shared=True, size=count, dtype=dtype).view(shape)


def row_pieces(shape: Shape) -> Iterator[tuple[int, int]]:
    """Runs of rows of about :data:`PIECE_ELEMENTS` elements, at least one row: the first, and one behind the last."""
    columns = shape[1] if len(shape) > 1 else 1
    step = max(1, PIECE_ELEMENTS // max(columns, 1))
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])
