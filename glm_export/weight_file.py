"""``model.onnx.data``: weights streamed from the checkpoint, transposed and converted on the way, in small blocks.

The layout is fixed before anything is traced or read, so that writing and tracing run side by side.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from glm_export.checkpoint import Checkpoint
from glm_export.config import GlmConfig
from glm_export.direct_file import DirectFile
from glm_export.errors import CheckpointError, EnvironmentMissingError
from glm_export.graphs.patterns.rotary import rotary_tables
from glm_export.progress import Advance

# A few megabytes: fits the cache while it is transposed, large enough that threads seldom meet.
BLOCK_ELEMENTS = 1 << 22
FEWEST_COLUMNS = 64
SHOWN_SOURCES = 3
# Runtimes map large external tensors only from aligned offsets; 64 KiB serves every platform.
LARGE_BYTES, LARGE_ALIGNMENT, SMALL_ALIGNMENT = 1 << 20, 1 << 16, 64


class CancelledError(Exception):
    """The export failed or was interrupted elsewhere; writing stops."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """Where one tensor lies in the file; ``shape`` is as stored."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    transposed: bool
    offset: int
    length: int


def plan_weights(model: nn.Module) -> list[StoredTensor]:
    """Lay out every parameter and rotary table of a reference model made on the meta device.

    Args:
        model: without aliased parameters; each tensor is stored in the dtype it has there.

    Returns:
        Tensors in file order. Weights of products (of linear layers, and stacked ones of experts) are stored with
        their last two axes exchanged, ``[in, out]``, ready for ``MatMul``.
    """
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    stored: list[StoredTensor] = []
    end = 0
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        transposed = name in linear or tensor.dim() == 3
        shape = (*tensor.shape[:-2], tensor.shape[-1], tensor.shape[-2]) if transposed else tuple(tensor.shape)
        alignment = LARGE_ALIGNMENT if tensor.nbytes >= LARGE_BYTES else SMALL_ALIGNMENT
        offset = -(-end // alignment) * alignment
        dtype = str(tensor.dtype).removeprefix("torch.")
        stored.append(
            StoredTensor(
                name=name, dtype=dtype, shape=shape, transposed=transposed, offset=offset, length=tensor.nbytes
            )
        )
        end = offset + tensor.nbytes
    return stored


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
    gathered, turned, converted = _Scratch(), _Scratch(), _Scratch()
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
            block = turned.like(tuple(reversed(piece.shape)), piece.dtype).copy_(whole.t())
        yield block if block.dtype == dtype else converted.like(tuple(block.shape), dtype).copy_(block)


def write_weights(
    path: Path,
    stored: list[StoredTensor],
    checkpoint: Checkpoint,
    *,
    cancelled: threading.Event,
    advance: Advance,
) -> float:
    """Write the file; memory stays at a few blocks, whatever the model's size.

    Returns:
        Seconds spent waiting for the disk to write; the rest went into reading, transposing and converting.

    Raises:
        CheckpointError: a weight is NaN or infinite, or exceeds what its dtype in the file can hold.
        EnvironmentMissingError: the disk is full.
        CancelledError: ``cancelled`` was set.
    """
    source_of = tensor_sources(checkpoint)
    try:
        with DirectFile(path, stored[-1].offset + stored[-1].length) as file:
            for entry in stored:
                file.pad_to(entry.offset)
                parts, origin = source_of[entry.name]
                for tensor in parts():
                    for block in blocks(tensor, getattr(torch, entry.dtype), transposed=entry.transposed):
                        if cancelled.is_set():
                            raise CancelledError
                        _check_finite(block, origin, tensor.dtype)
                        # numpy has no bfloat16: bytes go out through an integer view.
                        file.write(memoryview(block.reshape(-1).view(torch.uint8).numpy().data))
                        advance(block.nbytes)
        return file.seconds
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise EnvironmentMissingError(
                f"the disk of {path.parent} is full; free space or choose another --out"
            ) from error
        raise


def tensor_sources(checkpoint: Checkpoint) -> dict[str, tuple[Callable[[], Iterable[Tensor]], str]]:
    """For every stored name, how to get its parts and what to call it in a message."""
    sources: dict[str, tuple[Callable[[], Iterable[Tensor]], str]] = {
        rule.target: (partial(checkpoint.parts, rule), " + ".join(rule.sources[:SHOWN_SOURCES]))
        for rule in checkpoint.rules.rules
    }
    for index, name in enumerate(("cos", "sin")):
        sources[name] = (partial(_table, checkpoint.config, index), "the rotary table")
    return sources


def _table(config: GlmConfig, index: int) -> list[Tensor]:
    return [rotary_tables(config.rotary, config.max_positions)[index]] if config.rotary else []


def _check_finite(block: Tensor, origin: str, source_dtype: torch.dtype) -> None:
    # aminmax carries NaN through and runs at memory speed, unlike isfinite.
    low, high = torch.aminmax(block)
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        if block.dtype != source_dtype:
            raise CheckpointError(
                f"{origin} holds NaN, infinity or values beyond {str(block.dtype).removeprefix('torch.')}; "
                "check the file, or export with --dtype float32 or bfloat16"
            )
        raise CheckpointError(f"{origin} holds NaN or infinity; the checkpoint is damaged or its training diverged")
