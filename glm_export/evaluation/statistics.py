"""What llama.cpp prints of two models' predictions, and flips: from a few numbers a token, never from all logits.

``llama-perplexity --kl-divergence`` is where people compare quantized models, so its figures are made here by its
formulas and under its names.

Source: https://github.com/ggml-org/llama.cpp/blob/050fc7f32de16858ac667d775b43a51ed8976e6f/tools/perplexity/perplexity.cpp
(``kl_divergence``). It rounds the reference's logits to 16 bits, leaves out tokens of which the reference's logarithm
is below -16, computes in float32, and prints 0 for the error of ten tokens or fewer; here nothing is rounded or left
out, and errors begin with two tokens. Flips: Dutta et al., "Accuracy is Not All You Need", NeurIPS 2024
(https://arxiv.org/abs/2407.09141).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

PERCENTILES: dict[str, tuple[str, float]] = {
    "maximum": ("maximum", 1.0),
    "p99_9": ("99.9 %", 0.999),
    "p99": ("99 %", 0.99),
    "p95": ("95 %", 0.95),
    "p90": ("90 %", 0.9),
    "p75": ("75 %", 0.75),
    "median": ("median", 0.5),
    "p25": ("25 %", 0.25),
    "p10": ("10 %", 0.1),
    "p5": ("5 %", 0.05),
    "p1": ("1 %", 0.01),
    "p0_1": ("0.1 %", 0.001),
    "minimum": ("minimum", 0.0),
}
"""Names of :class:`Distribution`, the largest first: what people read, and the share of tokens that lie below."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure and its standard error, what llama.cpp writes behind ``±``; None where one token allows none."""

    value: float
    error: float | None

    def scaled(self, factor: float) -> Estimate:
        """Both times a number, e.g. in per cent."""
        return Estimate(value=self.value * factor, error=None if self.error is None else abs(factor) * self.error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """Where a figure's tokens lie; between two of them linearly, as llama.cpp and ``numpy.quantile`` have it."""

    maximum: float
    p99_9: float
    p99: float
    p95: float
    p90: float
    p75: float
    median: float
    p25: float
    p10: float
    p5: float
    p1: float
    p0_1: float
    minimum: float

    @classmethod
    def of(cls, values_S: Numbers) -> Distribution:
        """Of at least one token ``[S]``; infinity is a value as others are."""
        ordered = np.sort(values_S)
        return cls(**{name: _percentile(ordered, share) for name, (_, share) in PERCENTILES.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Flips:
    """What is answered otherwise. ``wrong_to_wrong``: another answer, wrong as well.

    The paper's flips are the first two; where accuracy stays as it was they are as many, and cancel.
    """

    right_to_wrong: int
    wrong_to_right: int
    wrong_to_wrong: int

    @property
    def flips(self) -> int:
        """From right to wrong and back, as the paper counts."""
        return self.right_to_wrong + self.wrong_to_right

    @property
    def changed(self) -> int:
        """All answers that are other ones."""
        return self.flips + self.wrong_to_wrong

    def to_json(self) -> dict[str, Any]:
        """Plain values, sums included."""
        return asdict(self) | {"flips": self.flips, "changed": self.changed}


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionStatistics:
    """The candidate (llama.cpp's Q) against the reference (its base), token by token.

    ``perplexity_correlation``: of both negative log-likelihoods, None where one does not vary. Ratios and the
    difference: the candidate's to the reference's. ``kl``: nats. ``delta_p``: the probability of the true token with
    the candidate, less that with the reference, of 1; ``delta_p_rms``: its root mean square. ``same_top``: share of
    tokens with the same likeliest one. ``flips``: of the likeliest token, right where it is the text's.
    """

    candidate_perplexity: Estimate
    reference_perplexity: Estimate
    perplexity_correlation: float | None
    log_perplexity_ratio: Estimate
    perplexity_ratio: Estimate
    perplexity_difference: Estimate
    kl: Estimate
    kl_distribution: Distribution
    delta_p: Estimate
    delta_p_distribution: Distribution
    delta_p_rms: Estimate
    same_top: Estimate
    flips: Flips

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"flips": self.flips.to_json()}


def statistics_of(
    reference_loss_S: Numbers, candidate_loss_S: Numbers, kl_S: Numbers, best_S3: NDArray[np.bool_]
) -> PredictionStatistics:
    """The statistics of S predicted tokens.

    Args:
        reference_loss_S: ``-log p(true token)``, nats.
        candidate_loss_S: the same, the candidate's; may be infinite.
        kl_S: divergence of each, nats; may be infinite.
        best_S3: whether both have the same likeliest token, whether the reference's is the true one, and the
            candidate's.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        candidate, reference = estimate(candidate_loss_S), estimate(reference_loss_S)
        ratio = _of_difference(candidate_loss_S, reference_loss_S)
        perplexities = np.exp([candidate.value, reference.value]).tolist()
        difference = _of_difference(perplexities[0] * candidate_loss_S, perplexities[1] * reference_loss_S)
        delta_p_S = np.exp(-candidate_loss_S) - np.exp(-reference_loss_S)
        squared = estimate(delta_p_S**2)
        root = math.sqrt(squared.value)
        times = float(np.divide(*perplexities))
    same, count = float(best_S3[:, 0].mean()), len(best_S3)
    return PredictionStatistics(
        candidate_perplexity=_spread(perplexities[0], perplexities[0], candidate.error),
        reference_perplexity=_spread(perplexities[1], perplexities[1], reference.error),
        perplexity_correlation=_correlation(candidate_loss_S, reference_loss_S),
        log_perplexity_ratio=ratio,
        perplexity_ratio=_spread(times, times, ratio.error),
        perplexity_difference=Estimate(value=perplexities[0] - perplexities[1], error=difference.error),
        kl=estimate(kl_S),
        kl_distribution=Distribution.of(kl_S),
        delta_p=estimate(delta_p_S),
        delta_p_distribution=Distribution.of(delta_p_S),
        # d sqrt(x) = dx / (2 sqrt(x)); where nothing differs there is nothing to divide by.
        delta_p_rms=_spread(root, 0.5 / root if root else 0.0, squared.error),
        same_top=Estimate(value=same, error=math.sqrt(same * (1 - same) / (count - 1)) if count > 1 else None),
        flips=flips_of(best_S3),
    )


def flips_of(answers_N3: Sequence[tuple[bool, bool, bool]] | NDArray[np.bool_]) -> Flips:
    """Of each answer: whether both sides give the same, whether the reference's is right, and the candidate's."""
    same_N, before_N, after_N = np.array(answers_N3, bool).reshape(-1, 3).T
    return Flips(
        right_to_wrong=int((before_N & ~after_N).sum()),
        wrong_to_right=int((~before_N & after_N).sum()),
        wrong_to_wrong=int((~same_N & ~before_N & ~after_N).sum()),
    )


def estimate(values_S: Numbers) -> Estimate:
    """A mean and its standard error ``sqrt(sum((x - mean)**2) / (n (n - 1)))``; both infinite where one value is."""
    count, mean = len(values_S), float(values_S.mean())
    if count < 2:
        return Estimate(value=mean, error=None)
    if not math.isfinite(mean):
        return Estimate(value=mean, error=math.inf)
    return Estimate(value=mean, error=math.sqrt(float(((values_S - mean) ** 2).sum()) / count / (count - 1)))


def _of_difference(one_S: Numbers, other_S: Numbers) -> Estimate:
    """Of the difference, token by token: llama.cpp's sum of variances less twice the covariance, without cancelling."""
    return estimate(np.where(np.isfinite(one_S), one_S, math.inf) - other_S)


def _spread(value: float, slope: float, error: float | None) -> Estimate:
    """An error carried through a function of that slope, to first order."""
    if error is None or not math.isfinite(value):
        return Estimate(value=value, error=None if error is None else math.inf)
    return Estimate(value=value, error=slope * error)


def _correlation(one_S: Numbers, other_S: Numbers) -> float | None:
    if not (np.isfinite(one_S).all() and np.isfinite(other_S).all()):
        return None
    one_S, other_S = one_S - one_S.mean(), other_S - other_S.mean()
    both = float(np.sqrt((one_S**2).sum() * (other_S**2).sum()))
    return float((one_S * other_S).sum()) / both if both > 0 else None


def _percentile(ordered_S: Numbers, share: float) -> float:
    place = share * (len(ordered_S) - 1)
    index = min(int(place), len(ordered_S) - 1)
    part, low = place - index, float(ordered_S[index])
    # Infinity times 0 is no number: a value that counts for nothing is not multiplied.
    return low if part == 0 else (1 - part) * low + part * float(ordered_S[min(index + 1, len(ordered_S) - 1)])
