"""One parameter's bytes in file order: transposed, converted and quantized in pieces of a few megabytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from glm_export.calibration.formats.blockwise import quantize_rows
from glm_export.calibration.formats.dynamic_channel import channel_scales, quantize_channels
from glm_export.calibration.formats.prequantized import PrequantizedWeight
from glm_export.calibration.formats.qdq import float8_columns
from glm_export.calibration.quantization import RoundedWeights
from glm_export.calibration.quantize import symmetric_scales
from glm_export.errors import CheckpointError
from glm_export.exporter.weight_layout import StoredTensor
from glm_export.spec.weight_formats import (
    QMAX,
    SCALES,
    BlockWeights,
    ChannelWeights,
    QdqWeights,
    WeightFormat,
    WeightFormats,
)

# A few megabytes: fits the cache while it is transposed, large enough that threads seldom meet.
BLOCK_ELEMENTS = 1 << 22
FEWEST_COLUMNS = 64


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
    given = rounded.given(entries[0].source, WeightFormats(form), weight_NK.shape[1]) if rounded is not None else None
    for index, block in _quantized_tensors(weight_NK, form, given):
        if entries[index].name.endswith(SCALES):
            block = block.to(getattr(torch, entries[index].dtype))
            _check_finite(block, origin, weight_NK.dtype)
        yield entries[index], block


def _quantized_tensors(
    weight_NK: Tensor, form: WeightFormat, given: PrequantizedWeight | None
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


def _given_tensors(form: BlockWeights, given: PrequantizedWeight) -> Iterator[tuple[int, Tensor]]:
    rows = given.packed_rows(form)
    yield 0, rows.packed
    yield 1, rows.scales


def _channel_tensors(weight_NK: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Twice over the weight: for its scales, then for its integers, which lie the other way round."""
    scales_N = torch.cat([channel_scales(piece) for piece in _row_pieces(weight_NK)])
    for block in blocks(weight_NK, torch.float32, transposed=True):
        yield 0, quantize_channels(block, scales_N)
    yield 1, scales_N


def _explicit_tensors(
    weight_NK: Tensor, form: QdqWeights, given: PrequantizedWeight | None
) -> Iterator[tuple[int, Tensor]]:
    """As :func:`_channel_tensors`; scales of blocks lie the other way round as well."""
    qmax = QMAX[form.dtype]
    scales_NC = (
        torch.cat([symmetric_scales(piece, qmax=qmax, block=form.block) for piece in _row_pieces(weight_NK)])
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
            integers_kN = (block_kN / divisors_kN).round_().clamp_(-qmax, qmax).to(torch.int8)
        yield 0, _nibbles(integers_kN) if form.dtype == "int4" else integers_kN
        first = last
    yield 1, scales_CN[0] if form.block is None else scales_CN


def _nibbles(integers: Tensor) -> Tensor:
    """Two 4-bit integers a byte, the first one low, as ONNX packs INT4."""
    pairs = integers.reshape(-1, 2).to(torch.int16) & 15
    return (pairs[:, 0] | pairs[:, 1] << 4).to(torch.uint8)


def _row_pieces(weight_NK: Tensor) -> tuple[Tensor, ...]:
    return torch.split(weight_NK, max(1, BLOCK_ELEMENTS // weight_NK.shape[1]))


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
