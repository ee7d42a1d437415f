"""``model.onnx.data``: weights streamed from the checkpoint, transposed, converted and quantized on the way.

The layout is fixed before anything is traced or read, so that writing and tracing run side by side.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor, nn

from glm_export.calibration.recipe import BlockWeights, ChannelWeights, Forms, WeightForm
from glm_export.calibration.weights import channel_scales, quantize_channels, quantize_rows
from glm_export.checkpoint import Checkpoint
from glm_export.config import GlmConfig
from glm_export.direct_file import DirectFile
from glm_export.errors import CheckpointError, EnvironmentMissingError
from glm_export.graphs.lowerings.quantized import PROMPT, stored_parts
from glm_export.graphs.patterns.rotary import rotary_tables
from glm_export.progress import Advance
from glm_export.signature import TensorSpec

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
    """Where one tensor lies in the file; ``shape`` is as stored.

    ``source`` is the parameter it comes from, which with a ``form`` becomes several tensors, one after another.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    transposed: bool
    offset: int
    length: int
    source: str
    form: WeightForm | None = None


def plan_weights(model: nn.Module, forms: Mapping[str, Forms] | None = None) -> list[StoredTensor]:
    """Lay out every parameter and rotary table of a reference model made on the meta device.

    Args:
        model: without aliased parameters; each tensor is stored in the dtype it has there.
        forms: the weights that are quantized.

    Returns:
        Tensors in file order. Weights of products (of linear layers, and stacked ones of experts) are stored with
        their last two axes exchanged, ``[in, out]``, ready for ``MatMul``.
    """
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    stored: list[StoredTensor] = []
    end = 0
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        both = (forms or {}).get(name)
        transposed = both is None and (name in linear or tensor.dim() == 3)
        dtype = str(tensor.dtype).removeprefix("torch.")
        shape = (*tensor.shape[:-2], tensor.shape[-1], tensor.shape[-2]) if transposed else tuple(tensor.shape)
        specs: list[tuple[TensorSpec, WeightForm | None]] = [(TensorSpec(name=name, dtype=dtype, dims=shape), None)]
        if both is not None:
            specs = [(spec, both.step) for spec in stored_parts(name, shape[0], shape[1], both.step, dtype)]
            if both.prompt is not None:
                parts = stored_parts(name + PROMPT, shape[0], shape[1], both.prompt, dtype)
                specs += [(spec, both.prompt) for spec in parts]
        for spec, form in specs:
            length = torch.Size(spec.shape()).numel() * getattr(torch, spec.dtype).itemsize
            alignment = LARGE_ALIGNMENT if length >= LARGE_BYTES else SMALL_ALIGNMENT
            offset = -(-end // alignment) * alignment
            end = offset + length
            stored.append(
                StoredTensor(
                    name=spec.name, dtype=spec.dtype, shape=spec.shape(), transposed=transposed, offset=offset,
                    length=length, source=name, form=form,
                )
            )  # fmt: skip
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
            for (source, _), group in groupby(stored, key=lambda entry: (entry.source, entry.form)):
                parts, origin = source_of[source]
                for entry, block in stored_blocks(list(group), parts, origin):
                    if cancelled.is_set():
                        raise CancelledError
                    file.pad_to(max(entry.offset, file.position))
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


def stored_blocks(
    entries: list[StoredTensor], parts: Callable[[], Iterable[Tensor]], origin: str
) -> Iterator[tuple[StoredTensor, Tensor]]:
    """The bytes of one parameter in file order: as it is, or in the form its recipe gives it.

    Raises:
        CheckpointError: a value is NaN or infinite, or exceeds what its dtype in the file can hold.
    """
    form = entries[0].form
    if form is None:
        for tensor in parts():
            for block in blocks(tensor, getattr(torch, entries[0].dtype), transposed=entries[0].transposed):
                _check_finite(block, origin, tensor.dtype)
                yield entries[0], block
        return
    (weight_NK,) = parts()
    quantized = _channel_tensors if isinstance(form, ChannelWeights) else partial(_block_tensors, form=form)
    for index, block in quantized(weight_NK):
        if entries[index].dtype == "float32" or block.is_floating_point():
            block = block.to(getattr(torch, entries[index].dtype))
            _check_finite(block, origin, weight_NK.dtype)
        yield entries[index], block


def _block_tensors(weight_NK: Tensor, form: BlockWeights) -> Iterator[tuple[int, Tensor]]:
    """Integers as they are made; scales and zero points, small beside them, when all rows are through."""
    step = max(1, BLOCK_ELEMENTS // weight_NK.shape[1])
    scales, zero_points = [], []
    for start in range(0, weight_NK.shape[0], step):
        rows = quantize_rows(weight_NK[start : start + step], form)
        scales.append(rows.scales)
        if rows.zero_points is not None:
            zero_points.append(rows.zero_points)
        yield 0, rows.packed.contiguous()
    yield 1, torch.cat(scales)
    if zero_points:
        yield 2, torch.cat(zero_points)


def _channel_tensors(weight_NK: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Twice over the weight: for its scales, then for its integers, which lie the other way round."""
    step = max(1, BLOCK_ELEMENTS // weight_NK.shape[1])
    scales_N = torch.cat(
        [channel_scales(weight_NK[start : start + step]) for start in range(0, weight_NK.shape[0], step)]
    )
    for block in blocks(weight_NK, torch.float32, transposed=True):
        yield 0, quantize_channels(block, scales_N)
    yield 1, scales_N


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
