"""Integers and 8-bit floats behind ``DequantizeLinear``."""

from __future__ import annotations

import torch
from torch import Tensor

from glm_export.spec.weight_formats import QMAX


def float8_columns(columns_KN: Tensor, scales_N: Tensor) -> Tensor:
    """Round ``[K, N]`` float32 to E4M3, each column by its scale; what is larger saturates."""
    largest = float(QMAX["float8e4m3fn"])
    return (columns_KN / scales_N).clamp_(-largest, largest).to(torch.float8_e4m3fn)
