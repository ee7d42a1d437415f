"""8-bit integers with one scale per output channel, as ``DynamicQuantizeMatMul`` reads them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from glm_export.calibration.formats.codec import PrequantizedWeight, encode, register_decode
from glm_export.calibration.formats.pieces import blocks, row_blocks
from glm_export.calibration.quantize import symmetric_scales, unsaturated_scales
from glm_export.spec.weight_formats import QMAX, ChannelWeights


@encode.register
def _(
    form: ChannelWeights,
    weight_NK: Tensor,
    given: PrequantizedWeight | None = None,  # noqa: ARG001 - no method of calibration makes any
) -> Iterator[tuple[int, Tensor]]:
    """Twice over the weight: for its scales, then for its integers, which lie the other way round."""
    scales_N = torch.cat([channel_scales(form, piece) for piece in row_blocks(weight_NK)])
    for block_kN in blocks(weight_NK, torch.float32, transposed=True):
        yield 0, quantize_channels(block_kN, scales_N)
    yield 1, scales_N


@register_decode
def _(form: ChannelWeights, weight_NK: Tensor) -> Tensor:
    scales_N = channel_scales(form, weight_NK)
    columns_KN = quantize_channels(weight_NK.float().t(), scales_N).float() * scales_N
    return columns_KN.t()


def channel_scales(form: ChannelWeights, rows_NK: Tensor) -> Tensor:
    """Scales ``[N]`` float32, all positive."""
    if form.sums_in_16_bits:
        return unsaturated_scales(rows_NK)[:, 0]
    return symmetric_scales(rows_NK, qmax=QMAX["int8"], block=None)[:, 0]


def quantize_channels(columns_KN: Tensor, scales_N: Tensor) -> Tensor:
    """Round ``[K, N]`` float32 to int8, each column by its scale."""
    return (columns_KN / scales_N).round_().clamp_(-QMAX["int8"], QMAX["int8"]).to(torch.int8)
