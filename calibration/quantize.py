"""Symmetric integers and their values: zero point 0 and positive scales, as TensorRT wants them; and float8.

Shapes: N output channels (rows), K input channels, R sample rows, C = ceil(K / block) blocks of a row, the last one
possibly short. ``block`` None takes a whole row for one block, so C = 1.

Values are divided by their scale, never multiplied by its inverse, and ties go to the even integer: what the ONNX
operators QuantizeLinear and DequantizeLinear (opset 21) are specified to do, so the results are equal, not close.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from glm_export.errors import InputError
from glm_export.spec.weight_formats import QMAX

INT8_QMAX, INT4_QMAX = QMAX["int8"], QMAX["int4"]
FLOAT8_LARGEST = 448.0
"""The largest finite value of E4M3FN (arXiv:2209.05433, table 1)."""
PAIR_STEPS = 127.5
"""What two neighbours along K may come to in steps, so that their integers come to 128: 255 * 128 fits 16 bits."""
PIECE_ELEMENTS = 1 << 20
"""Weights are worked on in pieces of about this many elements: 4 MiB in float32. Of 16 MiB a search takes 1.5 times as
long: what it works out of them leaves the cache, and lies in memory that is mapped anew."""


def symmetric_scales(rows_NK: Tensor, *, qmax: int, block: int | None) -> Tensor:
    """Scales that map each block's largest magnitude to ``qmax``.

    A block of zeros, or one so small that its scale is below float32's range, gets scale 1: TensorRT refuses 0.

    Args:
        rows_NK: ``[N, K]``, any float dtype.
        qmax: the largest integer: 127 for int8, 7 for int4.
        block: neighbours along K that share a scale, or None for one scale per row.

    Returns:
        ``max |block| / qmax``, float32 ``[N, C]``, all positive (arXiv:2004.09602, section 3.1.2).
    """
    # Of short blocks in half precision, PyTorch finds the largest one by one.
    values_NK = rows_NK if block is None else rows_NK.float()
    maxima_NC = torch.cat([largest_magnitudes(rows, dim=-1) for rows, _ in _blocks(values_NK, block)], dim=1)
    scales_NC = maxima_NC / qmax
    return scales_NC.masked_fill_(scales_NC == 0, 1.0)


def unsaturated_scales(rows_NK: Tensor) -> Tensor:
    """Scales of int8 rows that any processor multiplies exactly with 8-bit activations.

    x86 processors without VNNI add two neighbouring products in 16 bits that saturate (``VPMADDUBSW``; the neighbours
    are ``2 i`` and ``2 i + 1`` along K): 255 times what both integers come to has to stay within, so no more than 128.

    Args:
        rows_NK: ``[N, K]``, any float dtype.

    Returns:
        The larger one of ``max |row| / 127`` and ``max |row[2 i] + row[2 i + 1]| / 127.5``, float32 ``[N, 1]``, all
        positive; of a row of zeros 1.
    """
    scales_N1 = symmetric_scales(rows_NK, qmax=INT8_QMAX, block=None)
    even = rows_NK.shape[1] // 2 * 2
    if not even:
        return scales_N1
    values_NK = rows_NK.float()
    pairs_N = largest_magnitudes(values_NK[:, 0:even:2] + values_NK[:, 1:even:2], dim=1)
    return torch.maximum(scales_N1, (pairs_N / PAIR_STEPS)[:, None])


def largest_magnitudes(values: Tensor, *, dim: int) -> Tensor:
    """The largest magnitudes along an axis, which is dropped; float32. Makes no copy of the values."""
    # Not aminmax, which takes up to 17 times as long along an axis (torch 2.14). Of two zeros maximum takes either one.
    return torch.maximum(-values.amin(dim), values.amax(dim)).abs_().float()


def quantize_symmetric(rows_NK: Tensor, scales_NC: Tensor, *, qmax: int, block: int | None) -> Tensor:
    """Integers ``clamp(round(rows / scale))`` between ``-qmax`` and ``qmax``; a scale of 0 gives zeros.

    ONNX's int8 and int4 reach one step further down; with :func:`symmetric_scales` no value gets there.

    Args:
        rows_NK: ``[N, K]``, any float dtype.
        scales_NC: float32 ``[N, C]``.
        qmax: the largest integer, at most 127.
        block: as for :func:`symmetric_scales`.

    Returns:
        int8 ``[N, K]`` (arXiv:2004.09602, section 3.1.2; ties to even).
    """
    # Anything finite over infinity is zero, which is what a block with scale 0 holds.
    divisors_NC = scales_NC.float().masked_fill(scales_NC == 0, math.inf)
    integers_NK = torch.empty(rows_NK.shape, dtype=torch.int8, device=rows_NK.device)
    for (rows, blocks), (integers, _) in zip(_blocks(rows_NK, block), _blocks(integers_NK, block), strict=True):
        integers.copy_((rows.float() / divisors_NC[:, blocks, None]).round_().clamp_(-qmax, qmax))
    return integers_NK


def dequantize_symmetric(integers_NK: Tensor, scales_NC: Tensor, *, block: int | None) -> Tensor:
    """The values integers stand for: ``integer * scale``.

    Args:
        integers_NK: int8 ``[N, K]``.
        scales_NC: float32 ``[N, C]``.
        block: as for :func:`symmetric_scales`.

    Returns:
        float32 ``[N, K]`` (ONNX DequantizeLinear, opset 21).
    """
    values_NK = torch.empty(integers_NK.shape, dtype=torch.float32, device=integers_NK.device)
    for (integers, blocks), (values, _) in zip(_blocks(integers_NK, block), _blocks(values_NK, block), strict=True):
        torch.mul(integers, scales_NC[:, blocks, None].float(), out=values)
    return values_NK


def fake_quantize(values: Tensor, scale: float, *, qmax: int = INT8_QMAX) -> Tensor:
    """Round a tensor to integers with one scale, and back, as a QuantizeLinear and DequantizeLinear pair does.

    Args:
        values: any shape, any float dtype.
        scale: one step, in the unit of the values.
        qmax: the largest integer. The smallest is one further from zero, as the integer types' own: -128 for 127.

    Returns:
        ``saturate(round(values / scale)) * scale``, float32, in the shape of ``values`` (ONNX QuantizeLinear,
        opset 21; ties to even).

    Raises:
        InputError: scale is not positive and finite in float32.
    """
    divisor = _scale(scale, values)
    return (values.float() / divisor).round_().clamp_(-qmax - 1, qmax).mul_(divisor)


def round_each_token(values: Tensor) -> Tensor:
    """Round the rows of a tensor to int8 and back, each with a scale of its own: its largest magnitude over 127.

    Args:
        values: ``[..., K]``, any float dtype.

    Returns:
        ``m * saturate(round(values / m / (1 / 127))) * (1 / 127)`` with ``m`` a row's largest magnitude, or the dtype's
        smallest normal number where that is more; float32, in the shape of ``values``.
    """
    largest = values.float().abs().amax(dim=-1, keepdim=True).clamp_(min=torch.finfo(values.dtype).tiny)
    return fake_quantize(values.float() / largest, 1 / INT8_QMAX).mul_(largest)


def round_float8(values: Tensor, scale: float) -> Tensor:
    """Round a tensor to E4M3FN float8 with one scale, and back.

    Args:
        values: any shape, any float dtype.
        scale: what a float8 of 1 stands for, in the unit of the values.

    Returns:
        The E4M3FN value nearest to ``values / scale``, saturated at +-448, times ``scale``; float32, in the shape of
        ``values`` (ONNX QuantizeLinear with ``saturate``, opset 21; ties to the even mantissa).

    Raises:
        InputError: scale is not positive and finite in float32.
    """
    divisor = _scale(scale, values)
    # The format has no infinity, and PyTorch promises nothing about a cast from beyond the range.
    clamped = (values.float() / divisor).clamp_(-FLOAT8_LARGEST, FLOAT8_LARGEST)
    return clamped.to(torch.float8_e4m3fn).float().mul_(divisor)


def row_pieces(weight_NK: Tensor, *, others: int = 0) -> Iterator[Tensor]:
    """Cut a weight into runs of rows that are small in float32.

    Args:
        weight_NK: ``[N, K]``, any float dtype.
        others: values that go along with each row, beyond its own K.

    Yields:
        float32 ``[n, K]``, about :data:`PIECE_ELEMENTS` elements each, at least one row.
    """
    rows = max(1, PIECE_ELEMENTS // max(weight_NK.shape[1], others, 1))
    for begin in range(0, weight_NK.shape[0], rows):
        yield weight_NK[begin : begin + rows].float()


def product_errors(
    samples_RK: Tensor, weight_NK: Tensor, approximations: Sequence[Callable[[Tensor], Tensor]]
) -> list[float]:
    """What each approximation of the product ``y = samples @ weight.T`` loses.

    Args:
        samples_RK: ``[R, K]``, any float dtype.
        weight_NK: ``[N, K]``, any float dtype; read in pieces of rows.
        approximations: functions from some of the rows, float32 ``[n, K]``, to their product, float32 ``[R, n]``.
            They must leave the rows as they are.

    Returns:
        ``|approximation - y|^2 / |y|^2`` of each, over all samples and rows; no unit.

    Raises:
        InputError: shapes do not fit, or the product is zero or not finite, so no share of it can be told.
    """
    if samples_RK.ndim != 2 or weight_NK.ndim != 2 or samples_RK.shape[1] != weight_NK.shape[1]:
        raise InputError(
            f"samples [R, K] and weight [N, K] share K; found {[*samples_RK.shape]} and {[*weight_NK.shape]}"
        )
    samples_RK = samples_RK.float()
    differences, norm = [0.0] * len(approximations), 0.0
    for piece_nK in row_pieces(weight_NK, others=samples_RK.shape[0]):
        product_Rn = samples_RK @ piece_nK.t()
        norm += _squares(product_Rn)
        for index, approximation in enumerate(approximations):
            differences[index] += _squares(approximation(piece_nK).sub_(product_Rn))
    if not 0 < norm < math.inf:
        raise InputError(f"samples times weight must be finite and not all zero; found a squared norm of {norm}")
    return [difference / norm for difference in differences]


def _squares(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values, dtype=torch.float64) ** 2)


def _scale(scale: float, values: Tensor) -> Tensor:
    """A tensor beside the values: some devices multiply by the inverse of a Python number."""
    divisor = torch.tensor(scale, dtype=torch.float32, device=values.device)
    if not 0 < divisor.item() < math.inf:
        raise InputError(f"a scale is positive and finite in float32; found {scale}")
    return divisor


def _blocks(rows_NK: Tensor, block: int | None) -> Iterator[tuple[Tensor, slice]]:
    """Views ``[N, c, width]`` of the rows, with the blocks they are: all of full width, then the short one."""
    columns = rows_NK.shape[1]
    width = columns if block is None else block
    full, short = divmod(columns, width)
    if full:
        yield rows_NK[:, : full * width].view(-1, full, width), slice(0, full)
    if short:
        yield rows_NK[:, full * width :].unsqueeze(1), slice(full, full + 1)
