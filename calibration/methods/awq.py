"""AWQ: input channels with large activations scaled up before the weight is rounded, and down again after.

``X @ W.T == (X / s) @ (W * s).T``, and only ``W * s`` is rounded. arXiv:2306.00978 and its official code,
``awq/quantize/auto_scale.py`` of mit-han-lab/llm-awq.

Shapes: N output channels (rows), K input channels, R sample rows.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from glm_export.calibration.quantize import dequantize_symmetric, product_errors, quantize_symmetric, symmetric_scales
from glm_export.errors import InputError

SMALLEST = 1e-4
"""The official code's floor, of the scales before they are normalised."""
RATIOS = tuple(step / 10 for step in range(11))


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioChoice:
    """The exponent with the least error.

    ``ratio``: what :func:`awq_scales` takes; 0 is plain rounding. ``error``: of the product with the rounded weight,
    as a share of its squared norm. ``errors``: the same of every ratio tried.
    """

    ratio: float
    error: float
    errors: dict[float, float]


def awq_scales(mean_magnitudes_K: Tensor, ratio: float) -> Tensor:
    """What the weight's columns are multiplied with before rounding, and activations divided by.

    Args:
        mean_magnitudes_K: each input channel's mean magnitude over the samples, ``[K]``, any float dtype.
        ratio: exponent, 0 to 1; 0 gives ones.

    Returns:
        float32 ``[K]``, positive: ``s = mean|X|^ratio`` (arXiv:2306.00978, section 3.2), at least 1e-4, over
        ``sqrt(max(s) * min(s))``, both as in the official code.

    Raises:
        InputError: ratio is not between 0 and 1.
    """
    if not 0 <= ratio <= 1:
        raise InputError(f"a ratio is between 0 and 1; found {ratio}")
    # The official code's normalisation: without it a ratio would also move the product's overall size.
    scales_K = mean_magnitudes_K.float().pow(ratio).clamp_(min=SMALLEST)
    return scales_K / (scales_K.amax() * scales_K.amin()).sqrt()


@torch.no_grad()
def search_ratio(
    samples_RK: Tensor,
    mean_magnitudes_K: Tensor,
    weight_NK: Tensor,
    *,
    bits: int,
    block: int | None,
    ratios: tuple[float, ...] = RATIOS,
) -> RatioChoice:
    """Find the exponent that costs a layer's product least, by computing it with the rounded weight.

    ``W * s`` is rounded by symmetric blocks (:func:`~glm_export.calibration.quantize.symmetric_scales`) and divided
    by ``s`` again; activations keep their values. The earliest of equal ratios wins. Besides the inputs, memory holds
    a few pieces of rows (:data:`~glm_export.calibration.quantize.PIECE_ELEMENTS`).

    Args:
        samples_RK: activations to judge by, ``[R, K]``, any float dtype.
        mean_magnitudes_K: ``[K]``, as for :func:`awq_scales`.
        weight_NK: ``[N, K]``, any float dtype. For weights that share their input: all of them, one above the other.
        bits: of the integers, 2 to 8: the largest is ``2^(bits - 1) - 1``.
        block: neighbours along K that share a scale, or None for one scale per row.
        ratios: exponents to try. With 0 among them, the choice is never worse than plain rounding.

    Returns:
        The choice, with the error ``|y_q - y|^2 / |y|^2`` of each ratio.

    Raises:
        InputError: shapes do not fit, there is no ratio or one is not between 0 and 1, bits are not 2 to 8, or the
            product of the samples is zero or not finite.
    """
    if not 2 <= bits <= 8 or not ratios:
        raise InputError(f"a search needs 2 to 8 bits and at least one ratio; found {bits} bits, ratios {ratios}")
    qmax = (1 << (bits - 1)) - 1
    samples_RK = samples_RK.float()
    products = [
        functools.partial(_rounded_product, samples_RK, awq_scales(mean_magnitudes_K, ratio), qmax, block)
        for ratio in ratios
    ]
    errors = dict(zip(ratios, product_errors(samples_RK, weight_NK, products), strict=True))
    ratio = min(errors, key=errors.__getitem__)
    return RatioChoice(ratio=ratio, error=errors[ratio], errors=errors)


def _rounded_product(samples_RK: Tensor, scales_K: Tensor, qmax: int, block: int | None, rows_nK: Tensor) -> Tensor:
    """``[R, n]``: the samples times rows that were scaled, rounded and scaled back."""
    scaled_nK = rows_nK * scales_K
    steps_nC = symmetric_scales(scaled_nK, qmax=qmax, block=block)
    integers_nK = quantize_symmetric(scaled_nK, steps_nC, qmax=qmax, block=block)
    return samples_RK @ dequantize_symmetric(integers_nK, steps_nC, block=block).div_(scales_K).t()
