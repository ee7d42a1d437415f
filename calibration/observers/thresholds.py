"""Where to clip: percentile, entropy, mean squared error."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from glm_export.calibration.observers.histogram import Histogram
from glm_export.errors import InputError

_CANDIDATES = 4096  # thresholds weighed at once, in a few tables of this many rows and a column a level
_TIE = 1e-12  # what rounding leaves of a difference between two candidates that are equally good


def percentile_threshold(histogram: Histogram, fraction: float = 0.9999) -> float:
    """The smallest bin edge within which at least a fraction of the values lies, zeros among them.

    NVIDIA's ``pytorch_quantization`` (``calib/histogram.py``) and ONNX Runtime take the next smaller edge, within which
    there is less than the fraction.

    Args:
        histogram: of the values.
        fraction: above 0, up to 1.

    Raises:
        InputError: the fraction is out of range, or nothing but zeros was observed.
    """
    if not 0 < fraction <= 1:
        raise InputError(f"a fraction of the values is above 0 and up to 1; found {fraction}")
    within_U = _counts_in_use(histogram).cumsum(0)
    # The edge behind the first bin at which the running share reaches the fraction.
    return (int((within_U < fraction * within_U[-1]).sum()) + 1) * histogram.width


def entropy_threshold(histogram: Histogram, levels: int = 128) -> float:
    """The bin edge at which values rounded to levels lose least information, by TensorRT's published method.

    For each edge ``i`` the reference P is the first ``i`` bins, what lies beyond added to the last of them; the
    candidate Q is the same bins without that addition, merged into ``levels`` and spread again evenly over those bins
    of a level that P does not leave empty. The least KL(P, Q) wins. Source: S. Migacz, "8-bit Inference with
    TensorRT", GTC 2017, backup slides. The rest is ``pytorch_quantization``'s: bin ``j`` belongs to level
    ``floor(j * levels / i)``, equal candidates leave the largest threshold, and the threshold is the edge itself (the
    slides add half a bin), up to the one that clips nothing. But it replaces the first bin's count by the second's,
    and nothing is replaced here: of a tensor that is mostly zeros, the method clips most of the rest. All bins in use
    are searched, unreduced: running sums make a candidate cost one step a level, not one a bin.

    Args:
        histogram: of the values.
        levels: magnitudes an integer can express: 128 of 8 bits. No threshold is below this many bins.

    Raises:
        InputError: fewer than one level, or nothing but zeros was observed.
    """
    return _best_edge(histogram, levels, entropy=True)


def mse_threshold(histogram: Histogram, levels: int = 127) -> float:
    """The bin edge that leaves the least mean squared error of rounding to nearest, clipped values included.

    A threshold means steps of ``threshold / levels``, ``levels`` of them to each side of zero. Each value is taken to
    be at its bin's centre, as by ``pytorch_quantization`` (NVIDIA, ``calib/histogram.py``, ``_compute_amax_mse``).
    Equal candidates leave the largest threshold.

    Args:
        histogram: of the values.
        levels: 127 of 8 bits. No threshold is below this many bins: a step would be finer than a bin.

    Raises:
        InputError: fewer than one level, or nothing but zeros was observed.
    """
    return _best_edge(histogram, levels, entropy=False)


def _counts_in_use(histogram: Histogram) -> Tensor:
    """Counts up to the last bin that is not empty, float64 ``[U]``."""
    if histogram.top == 0:
        raise InputError("no activations were observed, or nothing but zeros: no threshold follows from them")
    counts = histogram.counts
    return counts[: int(counts.nonzero()[-1]) + 1].double()


def _best_edge(histogram: Histogram, levels: int, *, entropy: bool) -> float:
    """The last of the candidates whose loss is least: every edge from ``levels`` bins on, in the values' units."""
    if levels < 1:
        raise InputError(f"rounding needs a level at least; found {levels}")
    counts_U = _counts_in_use(histogram)
    if len(counts_U) <= levels:
        return len(counts_U) * histogram.width
    losses = _divergences if entropy else _squared_errors
    candidates = torch.arange(levels, len(counts_U) + 1)
    loss_I = torch.cat([losses(counts_U, some_I, levels) for some_I in torch.split(candidates, _CANDIDATES)])
    return int(candidates[(loss_I <= loss_I.min() + _TIE).nonzero()[-1]]) * histogram.width


def _before(values_U: Tensor) -> Tensor:
    """Sums of the first 0, 1, … U values."""
    return torch.cat((values_U.new_zeros(1), values_U.cumsum(0)))


def _divergences(counts_U: Tensor, edges_I: Tensor, levels: int) -> Tensor:
    """KL(P, Q) of :func:`entropy_threshold` in nats, float64 ``[I]``; infinity where Q lacks what P has."""
    masses, logs = _before(counts_U), _before(torch.xlogy(counts_U, counts_U))
    # Level k starts at the first bin j with j * levels / i >= k.
    starts_IL = -(-edges_I[:, None] * torch.arange(levels + 1) // levels)
    mass_IL = masses[starts_IL].diff(dim=1)
    bins_IL = _before((counts_U > 0).double())[starts_IL].diff(dim=1)
    bins_IL[:, -1] += counts_U[edges_I - 1] == 0  # what lies beyond fills that bin of P
    inside_I, total = masses[edges_I], masses[-1]
    reference_IL = mass_IL.clone()
    reference_IL[:, -1] += total - inside_I
    last_I = total - masses[edges_I - 1]
    # KL(P, Q) = sum p log p - sum p log q, with p = counts / total and q = counts / inside: logs are taken apart, so
    # that both sums come from running ones.
    own_I = logs[edges_I - 1] + torch.xlogy(last_I, last_I)
    shared_I = torch.xlogy(reference_IL, mass_IL / bins_IL.clamp(min=1)).sum(dim=1)
    divergence_I = (own_I - shared_I) / total - total.log() + inside_I.log()
    return divergence_I.masked_fill(inside_I == 0, math.inf)


def _squared_errors(counts_U: Tensor, edges_I: Tensor, levels: int) -> Tensor:
    """Mean squared errors of :func:`mse_threshold` as shares of the mean square, float64 ``[I]``.

    The sum over levels k of ``(x - k * step)**2``, by parts: what crossing each boundary ``(k + 1/2) * step`` changes.
    """
    centres_U = torch.arange(len(counts_U), dtype=torch.float64) + 0.5  # in bins, like steps and edges
    values, moments = _before(counts_U), _before(counts_U * centres_U)
    steps_I = edges_I.double() / levels
    odd_L = 2 * torch.arange(levels) + 1
    # The first bin j with j + 1/2 >= (k + 1/2) * i / levels; on a boundary both levels are equally far.
    starts_IL = -((levels - edges_I[:, None] * odd_L) // (2 * levels))
    starts_IL = starts_IL.clamp(0, len(counts_U))
    crossed_IL, moments_IL = values[-1] - values[starts_IL], moments[-1] - moments[starts_IL]
    square = (counts_U * centres_U.square()).sum()
    change_I = steps_I.square() * (crossed_IL * odd_L).sum(dim=1) - 2 * steps_I * moments_IL.sum(dim=1)
    return 1 + change_I / square
