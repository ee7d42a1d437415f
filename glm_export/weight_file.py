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

from glm_export.calibration.prepared import PreparedWeights
from glm_export.calibration.quantization import RoundedWeights
from glm_export.calibration.recipe import LEVELS, BlockWeights, ChannelWeights, Forms, QdqWeights, WeightForm
from glm_export.calibration.symmetric import symmetric_scales
from glm_export.calibration.weights import (
    GivenIntegers,
    channel_scales,
    float8_columns,
    quantize_channels,
    quantize_rows,
)  # fmt: skip
from glm_export.config import GlmConfig
from glm_export.direct_file import DirectFile
from glm_export.errors import CheckpointError, EnvironmentMissingError
from glm_export.graphs.lowerings.stored_weights import PROMPT, SCALES, stored_parts
from glm_export.graphs.patterns.rotary import rotary_tables
from glm_export.progress import Advance
from glm_export.signature import STORED_BITS, TensorSpec

# A few megabytes: fits the cache while it is transposed, large enough that threads seldom meet.
BLOCK_ELEMENTS = 1 << 22
FEWEST_COLUMNS = 64
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
            length = torch.Size(spec.shape()).numel() * STORED_BITS[spec.dtype] // 8
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
    weights: PreparedWeights,
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
    source_of = weights.sources() | _tables(weights.checkpoint.config)
    try:
        with DirectFile(path, stored[-1].offset + stored[-1].length) as file:
            for (source, _), group in groupby(stored, key=lambda entry: (entry.source, entry.form)):
                parts, origin = source_of[source]
                for entry, block in stored_blocks(list(group), parts, origin, weights.rounded):
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
    entries: list[StoredTensor],
    parts: Callable[[], Iterable[Tensor]],
    origin: str,
    rounded: RoundedWeights | None = None,
) -> Iterator[tuple[StoredTensor, Tensor]]:
    """The bytes of one parameter in file order: as it is, or in the form its recipe gives it.

    Args:
        entries: the tensors that stand for the parameter.
        parts: reads it.
        origin: what to call it in a message.
        rounded: where weights lie that were rounded beforehand.

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
    given = rounded.given(entries[0].source, Forms(form), weight_NK.shape[1]) if rounded is not None else None
    for index, block in _quantized_tensors(weight_NK, form, given):
        if entries[index].name.endswith(SCALES):
            block = block.to(getattr(torch, entries[index].dtype))
            _check_finite(block, origin, weight_NK.dtype)
        yield entries[index], block


def _quantized_tensors(
    weight_NK: Tensor, form: WeightForm, given: GivenIntegers | None
) -> Iterator[tuple[int, Tensor]]:
    """Pieces of the stored tensors, with their index."""
    if isinstance(form, ChannelWeights):
        return _channel_tensors(weight_NK)
    if isinstance(form, QdqWeights):
        return _explicit_tensors(weight_NK, form, given)
    return _block_tensors(weight_NK, form) if given is None else _given_tensors(form, given)


def _block_tensors(weight_NK: Tensor, form: BlockWeights) -> Iterator[tuple[int, Tensor]]:
    """Integers as they are made; scales and zero points, small beside them, when all rows are through."""
    scales, zero_points = [], []
    for piece in _row_pieces(weight_NK):
        rows = quantize_rows(piece, form)
        scales.append(rows.scales)
        if rows.zero_points is not None:
            zero_points.append(rows.zero_points)
        yield 0, rows.packed.contiguous()
    yield 1, torch.cat(scales)
    if zero_points:
        yield 2, torch.cat(zero_points)


def _given_tensors(form: BlockWeights, given: GivenIntegers) -> Iterator[tuple[int, Tensor]]:
    rows = given.packed_rows(form)
    yield 0, rows.packed
    yield 1, rows.scales


def _channel_tensors(weight_NK: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Twice over the weight: for its scales, then for its integers, which lie the other way round."""
    scales_N = torch.cat([channel_scales(piece) for piece in _row_pieces(weight_NK)])
    for block in blocks(weight_NK, torch.float32, transposed=True):
        yield 0, quantize_channels(block, scales_N)
    yield 1, scales_N


def _explicit_tensors(weight_NK: Tensor, form: QdqWeights, given: GivenIntegers | None) -> Iterator[tuple[int, Tensor]]:
    """As :func:`_channel_tensors`; scales of blocks lie the other way round as well."""
    levels = LEVELS[form.dtype]
    scales_NC = (
        torch.cat([symmetric_scales(piece, levels=levels, block=form.block) for piece in _row_pieces(weight_NK)])
        if given is None
        else given.scales
    )
    scales_CN, first = scales_NC.t().contiguous(), 0
    source = weight_NK if given is None else given.integers
    for block_kN in blocks(source, torch.float32 if given is None else torch.int8, transposed=True):
        last = first + len(block_kN)
        if given is not None:
            integers_kN = block_kN
        elif form.dtype.startswith("float8"):
            integers_kN = float8_columns(block_kN, scales_CN[0])
        else:
            block_of_k = torch.arange(first, last) // (form.block or weight_NK.shape[1])
            divisors_kN = scales_CN[block_of_k]
            integers_kN = (block_kN / divisors_kN).round_().clamp_(-levels, levels).to(torch.int8)
        yield 0, _nibbles(integers_kN) if form.dtype == "int4" else integers_kN
        first = last
    yield 1, scales_CN[0] if form.block is None else scales_CN


def _nibbles(integers: Tensor) -> Tensor:
    """Two 4-bit integers a byte, the first one low, as ONNX packs INT4."""
    pairs = integers.reshape(-1, 2).to(torch.int16) & 15
    return (pairs[:, 0] | pairs[:, 1] << 4).to(torch.uint8)


def _row_pieces(weight_NK: Tensor) -> tuple[Tensor, ...]:
    return torch.split(weight_NK, max(1, BLOCK_ELEMENTS // weight_NK.shape[1]))


def _tables(config: GlmConfig) -> dict[str, tuple[Callable[[], Iterable[Tensor]], str]]:
    """The rotary tables, which no checkpoint holds."""
    return {name: (partial(_table, config, index), "the rotary table") for index, name in enumerate(("cos", "sin"))}


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
