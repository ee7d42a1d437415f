"""Weights taken in pieces of a few megabytes: memory does not grow with them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# A few megabytes: fits the cache while it is transposed, large enough that threads seldom meet.
BLOCK_ELEMENTS = 1 << 21
FEWEST_COLUMNS = 64
# Rows are rounded in several float32 steps, each a new megabyte: it comes from memory in use and stays in a core's own
# cache, where larger pieces are mapped and cleared anew (4 M values to 4 bits: 5.0 ms in such pieces, 10.2 ms in one).
ROW_SHARE = 8


class _Scratch:
    """A buffer that is kept from block to block; fresh memory would cost as much as the copy itself."""

    def __init__(self) -> None:
        self._of_dtype: dict[torch.dtype, Tensor] = {}

    def like(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Uninitialised memory of this shape, valid until the next call with the same dtype."""
        count = torch.Size(shape).numel()
        buffer = self._of_dtype.get(dtype)
        if buffer is None or buffer.numel() < count:
            buffer = self._of_dtype[dtype] = torch.empty(max(count, BLOCK_ELEMENTS), dtype=dtype)
        return buffer[:count].view(shape)


def blocks(tensor: Tensor, dtype: torch.dtype, *, transposed: bool) -> Iterator[Tensor]:
    """The tensor in stored order and dtype, in contiguous pieces of a few megabytes.

    A piece is valid until the next one is asked for.
    """
    gathered, transposed_block, converted = _Scratch(), _Scratch(), _Scratch()
    if transposed:
        rows, columns = tensor.shape
        step = max(FEWEST_COLUMNS, BLOCK_ELEMENTS // rows // FEWEST_COLUMNS * FEWEST_COLUMNS)
        pieces: Iterator[Tensor] = (tensor[:, start : start + step] for start in range(0, columns, step))
    else:
        flat = tensor.reshape(-1)
        pieces = (flat[start : start + BLOCK_ELEMENTS] for start in range(0, flat.numel(), BLOCK_ELEMENTS))
    for piece in pieces:
        block = piece
        if transposed:
            # Row by row into a small buffer first: PyTorch transposes contiguous memory 2.3 times as fast.
            whole = gathered.like(tuple(piece.shape), piece.dtype).copy_(piece)
            block = transposed_block.like(tuple(reversed(piece.shape)), piece.dtype).copy_(whole.t())
        yield block if block.dtype == dtype else converted.like(tuple(block.shape), dtype).copy_(block)


def row_blocks(weight_NK: Tensor) -> tuple[Tensor, ...]:
    """Views of whole rows, about an eighth of :data:`BLOCK_ELEMENTS` elements each."""
    return torch.split(weight_NK, max(1, BLOCK_ELEMENTS // ROW_SHARE // weight_NK.shape[1]))
