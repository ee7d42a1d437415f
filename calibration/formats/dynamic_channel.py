"""8-bit integers with one scale per output channel, as ``DynamicQuantizeMatMul`` reads them."""

from __future__ import annotations

import torch
from torch import Tensor

from glm_export.spec.weight_formats import QMAX


def channel_scales(rows_NK: Tensor) -> Tensor:
    """Scales ``[N]`` float32 that map each row's largest magnitude to 127."""
    low_N, high_N = torch.aminmax(rows_NK.float(), dim=1)
    return torch.maximum(-low_N, high_N) / QMAX["int8"]


def quantize_channels(columns_KN: Tensor, scales_N: Tensor) -> Tensor:
    """Round ``[K, N]`` float32 to int8, each column by its scale."""
    inverse_N = torch.where(scales_N == 0, 0, 1 / scales_N)
    return (columns_KN * inverse_N).round_().clamp_(-QMAX["int8"], QMAX["int8"]).to(torch.int8)
