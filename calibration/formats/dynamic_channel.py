"""8-bit integers with one scale per output channel, as ``DynamicQuantizeMatMul`` reads them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from glm_export.calibration.formats.codec import PrequantizedWeight, encode, register_decode
from glm_export.calibration.formats.pieces import blocks, row_blocks
from glm_export.calibration.quantize import unsaturated_scales
from glm_export.spec.weight_formats import QMAX, ChannelWeights


@encode.register
def _(
    form: ChannelWeights,  # noqa: ARG001 - it has no settings
    weight_NK: Tensor,
    given: PrequantizedWeight | None = None,  # noqa: ARG001 - no method of calibration makes any
) -> Iterator[tuple[int, Tensor]]:
    """Twice over the weight: for its scales, then for its integers, which lie the other way round."""
    scales_N = torch.cat([channel_scales(piece) for piece in row_blocks(weight_NK)])
    for block_kN in blocks(weight_NK, torch.float32, transposed=True):
        yield 0, quantize_channels(block_kN, scales_N)
    yield 1, scales_N


@register_decode
def _(form: ChannelWeights, weight_NK: Tensor) -> Tensor:  # noqa: ARG001
    scales_N = channel_scales(weight_NK)
    columns_KN = quantize_channels(weight_NK.float().t(), scales_N).float() * scales_N
    return columns_KN.t()


def channel_scales(rows_NK: Tensor) -> Tensor:
    """Scales ``[N]`` float32; see :func:`~glm_export.calibration.quantize.unsaturated_scales`."""
    return unsaturated_scales(rows_NK)[:, 0]


def quantize_channels(columns_KN: Tensor, scales_N: Tensor) -> Tensor:
    """Round ``[K, N]`` float32 to int8, each column by its scale."""
    return (columns_KN / scales_N).round_().clamp_(-QMAX["int8"], QMAX["int8"]).to(torch.int8)
