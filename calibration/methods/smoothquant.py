"""SmoothQuant: outlier channels of activations handed over to the weight before both become 8-bit integers.

``X @ W.T == (X / s) @ (W * s).T``: the product stays, the ranges change. arXiv:2211.10438 and its official code,
``smoothquant/smooth.py`` of mit-han-lab/smoothquant.

Shapes: N output channels (rows), K input channels, R sample rows.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from glm_export.calibration.quantize import (
    INT8_QMAX,
    largest_magnitudes,
    product_errors,
    quantize_symmetric,
    row_pieces,
    symmetric_scales,
)
from glm_export.errors import InputError

SMALLEST = 1e-5
"""The official code's floor, of a weight's maxima and of the scales."""
ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 1.0)
"""Around the paper's two: 0.5 for most models, 0.75 for GLM-130B."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlphaChoice:
    """The migration strength with the least error.

    ``alpha``: what :func:`smoothing_scales` takes; None leaves the layer as it is. ``error``: of the product with
    8-bit weight and activations, as a share of its squared norm. ``errors``: the same of every alpha tried, None first.
    """

    alpha: float | None
    error: float
    errors: dict[float | None, float]


def smoothing_scales(activation_maxima_K: Tensor, weight_maxima_K: Tensor, alpha: float | None) -> Tensor:
    """What activations are divided by, and the weight's columns multiplied with.

    Args:
        activation_maxima_K: each input channel's largest magnitude over the samples, ``[K]``, any float dtype.
        weight_maxima_K: the same of the weight's columns, ``[K]``; the largest over all weights that share the input.
        alpha: migration strength, 0 to 1: how much of the activations' range moves to the weight. None moves none.

    Returns:
        float32 ``[K]``, positive: ``max|X|^alpha / max|W|^(1 - alpha)`` (arXiv:2211.10438, eq. 4), weight maxima and
        scales at least 1e-5 as in the official code. Channels without activation get 1, as does every one if alpha is
        None.

    Raises:
        InputError: alpha is not between 0 and 1.
    """
    activations_K = activation_maxima_K.float()
    if alpha is None:
        return torch.ones_like(activations_K)
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha is between 0 and 1; found {alpha}")
    weights_K = weight_maxima_K.float().clamp(min=SMALLEST)
    scales_K = (activations_K.pow(alpha) / weights_K.pow(1 - alpha)).clamp_(min=SMALLEST)
    return scales_K.masked_fill_(activations_K == 0, 1.0)


@torch.no_grad()
def search_alpha(
    samples_RK: Tensor, activation_maxima_K: Tensor, weight_NK: Tensor, alphas: tuple[float, ...] = ALPHAS
) -> AlphaChoice:
    """Find the migration strength that costs a layer's product least, by computing it in 8 bits.

    Weights ``W * s`` are rounded with one scale per row, activations ``X / s`` with one static scale, the largest of
    ``activation_maxima / s`` over 127: the paper's static scheme (O3), with the weight by channel. No smoothing is
    always tried, and preferred where nothing is better. Besides the inputs, memory holds a byte per sample value and
    alpha, and a few pieces of rows (:data:`~glm_export.calibration.quantize.PIECE_ELEMENTS`).

    Args:
        samples_RK: activations to judge by, ``[R, K]``, any float dtype.
        activation_maxima_K: ``[K]``, as for :func:`smoothing_scales`; samples beyond it saturate.
        weight_NK: ``[N, K]``, any float dtype. For weights that share their input: all of them, one above the other.
        alphas: migration strengths to try.

    Returns:
        The choice, with the error ``|y_q - y|^2 / |y|^2`` of each alpha.

    Raises:
        InputError: shapes do not fit, an alpha is not between 0 and 1, activation maxima are all zero or not finite,
            or the product of the samples is.
    """
    low, high = torch.aminmax(activation_maxima_K)
    if not 0 <= low.item() <= high.item() < float("inf") or high.item() == 0:
        raise InputError("activation maxima must be finite, not negative and not all zero")
    weight_maxima_K = torch.zeros_like(activation_maxima_K, dtype=torch.float32)
    for piece_nK in row_pieces(weight_NK):
        # In place: kept results between freed pieces would leave the heap full of holes.
        torch.maximum(weight_maxima_K, largest_magnitudes(piece_nK, dim=0), out=weight_maxima_K)
    candidates: list[float | None] = [None, *alphas]
    products = []
    for alpha in candidates:
        scales_K = smoothing_scales(activation_maxima_K, weight_maxima_K, alpha)
        # The smallest common step: one scale for the tensor must hold every smoothed channel.
        step = (activation_maxima_K.float() / scales_K).amax() / INT8_QMAX
        integers_RK = (samples_RK.float() / scales_K).div_(step).round_().clamp_(-INT8_QMAX - 1, INT8_QMAX)
        products.append(functools.partial(_integer_product, integers_RK.to(torch.int8), step, scales_K))
    errors = dict(zip(candidates, product_errors(samples_RK, weight_NK, products), strict=True))
    alpha = min(errors, key=errors.__getitem__)
    return AlphaChoice(alpha=alpha, error=errors[alpha], errors=errors)


def _integer_product(integers_RK: Tensor, step: Tensor, scales_K: Tensor, rows_nK: Tensor) -> Tensor:
    """``[R, n]``: rounded activations times smoothed and rounded rows, scaled after the product as runtimes do."""
    smoothed_nK = rows_nK * scales_K
    row_scales_n1 = symmetric_scales(smoothed_nK, qmax=INT8_QMAX, block=None)
    rounded_nK = quantize_symmetric(smoothed_nK, row_scales_n1, qmax=INT8_QMAX, block=None)
    return (integers_RK.float() @ rounded_nK.float().t()).mul_(row_scales_n1.t() * step)
