"""Integers with one scale a block, as ``MatMulNBits`` and ``GatherBlockQuantized`` read them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from glm_export.calibration.formats.codec import PrequantizedWeight, encode, read_back, register_decode
from glm_export.calibration.formats.pieces import row_blocks
from glm_export.spec.weight_formats import BlockWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedRows:
    """Rows of a weight as ``MatMulNBits`` reads them.

    ``packed``: uint8 ``[N, C, block * bits / 8]``, two 4-bit integers a byte, the first one low. ``scales``: float32
    ``[N, C]``. ``zero_points``: uint8 ``[N, C]`` or, of 4 bits, ``[N, ceil(C / 2)]`` packed alike; None if symmetric.
    """

    packed: Tensor
    scales: Tensor
    zero_points: Tensor | None


@encode.register
def _(form: BlockWeights, weight_NK: Tensor, given: PrequantizedWeight | None = None) -> Iterator[tuple[int, Tensor]]:
    """Integers as they are made; scales and zero points, small beside them, when all rows are through."""
    if given is not None:
        pieces = row_blocks(given.integers)
        for integers, scales_nC in zip(pieces, given.scales.split(len(pieces[0])), strict=True):
            yield 0, packed_rows(PrequantizedWeight(integers=integers, scales=scales_nC), form).packed
        yield 1, given.scales
        return
    scales, zero_points = [], []
    for piece in row_blocks(weight_NK):
        rows = quantize_rows(piece, form)
        scales.append(rows.scales)
        if rows.zero_points is not None:
            zero_points.append(rows.zero_points)
        yield 0, rows.packed.contiguous()
    yield 1, torch.cat(scales)
    if zero_points:
        yield 2, torch.cat(zero_points)


@register_decode
def _(form: BlockWeights, weight_NK: Tensor) -> Tensor:
    return dequantize_rows(quantize_rows(weight_NK, form), form, weight_NK.shape[1])


@read_back.register
def _(form: BlockWeights, packed: Tensor, scales: Tensor, columns: int) -> PrequantizedWeight:
    rows = QuantizedRows(packed=packed, scales=scales, zero_points=None)
    return PrequantizedWeight(integers=integers_of_rows(rows, form, columns), scales=scales)


def packed_rows(given: PrequantizedWeight, form: BlockWeights) -> QuantizedRows:
    """Integers as ``MatMulNBits`` reads them, counted from the middle of their range."""
    columns, blocks = given.integers.shape[1], given.scales.shape[1]
    unsigned = (given.integers.to(torch.int16) + (1 << form.bits - 1)).to(torch.uint8)
    filled = functional.pad(unsigned, (0, blocks * form.block - columns), value=1 << form.bits - 1)
    packed = pack_integers(filled.view(len(filled), blocks, form.block), form.bits)
    return QuantizedRows(packed=packed, scales=given.scales, zero_points=None)


def quantize_rows(rows_NK: Tensor, form: BlockWeights) -> QuantizedRows:
    """Round to nearest. A row's last block is filled with zeros where K is no multiple of the block."""
    blocks_NCB = _blocks(rows_NK, form)
    # Two reductions: aminmax along an axis takes five times as long as both (torch 2.14).
    low_NC, high_NC = blocks_NCB.amin(-1), blocks_NCB.amax(-1)
    levels = 1 << form.bits
    if form.symmetric:
        # The extreme value, with its sign, becomes the lowest integer: the range has one more step on that side.
        extreme_NC = torch.where(high_NC > -low_NC, high_NC, low_NC)
        scales_NC, zero = extreme_NC / (-levels // 2), torch.tensor(levels / 2)
        zeros_NC1: Tensor = zero
        stored_zeros = None
    else:
        low_NC, high_NC = low_NC.clamp(max=0), high_NC.clamp(min=0)
        scales_NC = (high_NC - low_NC) / (levels - 1)
        zeros_NC = torch.nan_to_num(-low_NC / scales_NC).round_().clamp_(0, levels - 1)
        zeros_NC1, stored_zeros = zeros_NC.unsqueeze(-1), pack_integers(zeros_NC.to(torch.uint8), form.bits)
    inverse_NC1 = torch.where(scales_NC == 0, 0, 1 / scales_NC).unsqueeze(-1)
    integers = (blocks_NCB * inverse_NC1).add_(zeros_NC1).round_().clamp_(0, levels - 1).to(torch.uint8)
    return QuantizedRows(packed=pack_integers(integers, form.bits), scales=scales_NC, zero_points=stored_zeros)


def dequantize_rows(rows: QuantizedRows, form: BlockWeights, columns: int) -> Tensor:
    """The values the integers stand for, float32 ``[N, K]``."""
    integers_NCB = _unpacked(rows.packed, form.bits, form.block).float()
    if rows.zero_points is None:
        zeros_NC1 = torch.tensor(float(1 << (form.bits - 1)))
    else:
        zeros_NC1 = _unpacked(rows.zero_points, form.bits, rows.scales.shape[1]).float().unsqueeze(-1)
    values_NCB = (integers_NCB - zeros_NC1) * rows.scales.float().unsqueeze(-1)
    return values_NCB.flatten(1)[:, :columns]


def integers_of_rows(rows: QuantizedRows, form: BlockWeights, columns: int) -> Tensor:
    """Symmetric rows' integers counted from zero, int8 ``[N, K]``."""
    unsigned_NCB = _unpacked(rows.packed, form.bits, form.block).to(torch.int16)
    return (unsigned_NCB - (1 << form.bits - 1)).to(torch.int8).flatten(1)[:, :columns]


def _blocks(rows_NK: Tensor, form: BlockWeights) -> Tensor:
    """``[N, C, block]`` float32."""
    rows = rows_NK.float()
    missing = -rows.shape[1] % form.block
    if missing:
        rows = functional.pad(rows, (0, missing))
    return rows.view(rows.shape[0], -1, form.block)


def pack_integers(integers: Tensor, bits: int) -> Tensor:
    """Two 4-bit integers a byte, along the last axis."""
    if bits == 8:
        return integers
    if integers.shape[-1] % 2:
        integers = functional.pad(integers, (0, 1))
    # A pair read as one number of 16 bits has its second integer four bits too high; what is above a byte falls away.
    pairs = integers.contiguous().view(torch.int16)
    return (pairs | pairs >> 4).to(torch.uint8)


def _unpacked(stored: Tensor, bits: int, count: int) -> Tensor:
    if bits == 8:
        return stored
    return torch.stack((stored & 15, stored >> 4), dim=-1).flatten(-2)[..., :count]
