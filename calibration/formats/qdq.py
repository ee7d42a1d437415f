"""Integers and 8-bit floats behind ``DequantizeLinear``."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from glm_export.calibration.formats.codec import PrequantizedWeight, encode, read_back, register_decode
from glm_export.calibration.formats.pieces import blocks, row_blocks
from glm_export.calibration.quantize import (
    dequantize_symmetric,
    quantize_symmetric,
    symmetric_scales,
    unsaturated_scales,
)
from glm_export.spec.weight_formats import QMAX, QdqWeights


@encode.register
def _(form: QdqWeights, weight_NK: Tensor, given: PrequantizedWeight | None = None) -> Iterator[tuple[int, Tensor]]:
    """Twice over the weight, whose values lie the other way round; so do the scales of blocks."""
    qmax = QMAX[form.dtype]
    scales_NC = torch.cat([_scales(form, piece) for piece in row_blocks(weight_NK)]) if given is None else given.scales
    scales_CN, first = scales_NC.t().contiguous(), 0
    source = weight_NK if given is None else given.integers
    for block_kN in blocks(source, torch.float32 if given is None else torch.int8, transposed=True):
        last = first + len(block_kN)
        if given is not None:
            values_kN = block_kN
        elif form.dtype.startswith("float8"):
            values_kN = float8_columns(block_kN, scales_CN[0])
        else:
            scales_kN = scales_CN if form.block is None else scales_CN[torch.arange(first, last) // form.block]
            values_kN = block_kN.div_(scales_kN).round_().clamp_(-qmax, qmax).to(torch.int8)
        yield 0, nibbles(values_kN) if form.dtype == "int4" else values_kN
        first = last
    yield 1, scales_CN[0] if form.block is None else scales_CN


@register_decode
def _(form: QdqWeights, weight_NK: Tensor) -> Tensor:
    qmax = QMAX[form.dtype]
    scales_NC = _scales(form, weight_NK)
    if form.dtype.startswith("float8"):
        return float8_columns(weight_NK.float().t(), scales_NC[:, 0]).float().t() * scales_NC
    integers_NK = quantize_symmetric(weight_NK, scales_NC, qmax=qmax, block=form.block)
    return dequantize_symmetric(integers_NK, scales_NC, block=form.block)


def _scales(form: QdqWeights, rows_NK: Tensor) -> Tensor:
    if form.sums_in_16_bits:
        return unsaturated_scales(rows_NK)
    return symmetric_scales(rows_NK, qmax=QMAX[form.dtype], block=form.block)


@read_back.register
def _(form: QdqWeights, packed: Tensor, scales: Tensor, columns: int) -> PrequantizedWeight:  # noqa: ARG001
    return PrequantizedWeight(integers=packed.to(torch.int8).t(), scales=scales.t() if form.block else scales[:, None])


def nibbles(integers: Tensor) -> Tensor:
    """Two 4-bit integers a byte, the first one low, as ONNX packs INT4."""
    pairs = integers.reshape(-1, 2).to(torch.int16) & 15
    return (pairs[:, 0] | pairs[:, 1] << 4).to(torch.uint8)


def float8_columns(columns_KN: Tensor, scales_N: Tensor) -> Tensor:
    """Round ``[K, N]`` float32 to E4M3, each column by its scale; what is larger saturates."""
    largest = float(QMAX["float8e4m3fn"])
    return (columns_KN / scales_N).clamp_(-largest, largest).to(torch.float8_e4m3fn)
