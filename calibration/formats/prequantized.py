"""Weights whose integers were found beforehand, and any weight rounded and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from glm_export.calibration.formats.blockwise import QuantizedRows, dequantize_rows, pack_integers, quantize_rows
from glm_export.calibration.formats.dynamic_channel import channel_scales, quantize_channels
from glm_export.calibration.formats.qdq import float8_columns
from glm_export.calibration.quantize import dequantize_symmetric, quantize_symmetric, symmetric_scales
from glm_export.spec.weight_formats import QMAX, BlockWeights, ChannelWeights, QdqWeights, WeightFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class PrequantizedWeight:
    """A weight that was rounded beforehand: int8 ``[N, K]`` and float32 scales ``[N, C]``, symmetric, zero point 0."""

    integers: Tensor
    scales: Tensor

    def packed_rows(self, form: BlockWeights) -> QuantizedRows:
        """The same integers as ``MatMulNBits`` reads them, counted from the middle of their range."""
        columns, blocks = self.integers.shape[1], self.scales.shape[1]
        unsigned = (self.integers.to(torch.int16) + (1 << form.bits - 1)).to(torch.uint8)
        filled = functional.pad(unsigned, (0, blocks * form.block - columns), value=1 << form.bits - 1)
        packed = pack_integers(filled.view(len(filled), blocks, form.block), form.bits)
        return QuantizedRows(packed=packed, scales=self.scales, zero_points=None)


def rounded(weight_NK: Tensor, form: WeightFormat, given: PrequantizedWeight | None = None) -> Tensor:
    """The weight a form keeps: rounded to integers and back, float32 ``[N, K]``."""
    block = form.block if not isinstance(form, ChannelWeights) else None
    if given is not None:
        return dequantize_symmetric(given.integers, given.scales, block=block)
    if isinstance(form, ChannelWeights):
        scales_N = channel_scales(weight_NK)
        columns_KN = quantize_channels(weight_NK.float().t(), scales_N).float() * scales_N
        return columns_KN.t()
    if isinstance(form, QdqWeights):
        qmax = QMAX[form.dtype]
        scales_NC = symmetric_scales(weight_NK, qmax=qmax, block=block)
        if form.dtype.startswith("float8"):
            return float8_columns(weight_NK.float().t(), scales_NC[:, 0]).float().t() * scales_NC
        return dequantize_symmetric(
            quantize_symmetric(weight_NK, scales_NC, qmax=qmax, block=block), scales_NC, block=block
        )
    return dequantize_rows(quantize_rows(weight_NK, form), form, weight_NK.shape[1])
