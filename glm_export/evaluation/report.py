"""A quality report judged: what exceeded the budget, and which layer cost how much."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from glm_export.evaluation.statistics import Flips, PredictionStatistics
from glm_export.spec.summary import Summarized

if TYPE_CHECKING:  # exported folders are measured without torch
    from glm_export.evaluation.layer_costs import LayerCost

PREDICTED = ("reference_perplexity", "candidate_perplexity", "perplexity_ratio", "kl", "kl_99", "kl_largest", "top1")
DERIVED = (*PREDICTED, "greedy_share", "recall")
"""Properties of a report that its JSON has as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityReport:
    """What separates a candidate from its reference.

    ``tokens`` were predicted, in ``samples``; figures are over them, ``statistics`` has all that need no logits.
    Perplexity: ``exp(mean(-log p(true token)))``. ``kl``: mean of ``sum(p * (log p - log q))`` over the vocabulary, p
    the reference's distribution, q the candidate's, in nats (Kullback and Leibler 1951); ``kl_99``: its 99th
    percentile. ``top1``: share of tokens where both find the same one likeliest. ``top5``: how many of the reference's
    five likeliest are among the candidate's, over five, in any order. ``worst_sample``: index in the corpus of the
    largest mean KL, which is ``worst_kl``. Figures are infinite where the candidate gives probability 0 to what the
    reference may say.

    ``greedy_rows`` prompts were continued by both, up to ``greedy_tokens`` tokens or the end of the text.
    ``greedy_identical`` came out alike; ``greedy_first_difference`` is the median step (the first token is step 1)
    where the others part, None where none does. ``tasks`` were asked, of which each side did so many exactly;
    ``answer_flips``: which of them only one side did.
    """

    corpus: dict[str, Any]
    samples: int
    tokens: int
    statistics: PredictionStatistics
    top5: float
    worst_sample: int
    worst_kl: float
    greedy_rows: int
    greedy_tokens: int
    greedy_identical: int
    greedy_first_difference: float | None
    tasks: int
    reference_exact: int
    candidate_exact: int
    answer_flips: Flips

    @property
    def reference_perplexity(self) -> float:
        """Of the reference, on the corpus."""
        return self.statistics.reference_perplexity.value

    @property
    def candidate_perplexity(self) -> float:
        """Of the candidate."""
        return self.statistics.candidate_perplexity.value

    @property
    def perplexity_ratio(self) -> float:
        """The candidate's perplexity over the reference's."""
        return self.statistics.perplexity_ratio.value

    @property
    def kl(self) -> float:
        """Mean KL divergence, nats a token."""
        return self.statistics.kl.value

    @property
    def kl_99(self) -> float:
        """Its 99th percentile over tokens."""
        return self.statistics.kl_distribution.p99

    @property
    def kl_largest(self) -> float:
        """That of the worst token."""
        return self.statistics.kl_distribution.maximum

    @property
    def top1(self) -> float:
        """Share of tokens with the same likeliest one."""
        return self.statistics.same_top.value

    @property
    def greedy_share(self) -> float | None:
        """Share of greedy rows that are identical; None where none was written."""
        return self.greedy_identical / self.greedy_rows if self.greedy_rows else None

    @property
    def recall(self) -> float | None:
        """Tasks the candidate does exactly over those the reference does; None where it does none."""
        return self.candidate_exact / self.reference_exact if self.reference_exact else None

    def to_json(self) -> dict[str, Any]:
        """Plain values, shares and ratios included; what JSON has no number for as the text ``"Infinity"``."""
        own = asdict(self) | {name: getattr(self, name) for name in DERIVED}
        own |= {"statistics": self.statistics.to_json(), "answer_flips": self.answer_flips.to_json()}
        plain: dict[str, Any] = _plain(own)
        return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class QualityVerdict(Summarized):
    """``corpus``: its provenance. ``broken``: a sentence for each limit exceeded; None where there was no budget."""

    report: QualityReport
    corpus: dict[str, Any]
    broken: tuple[str, ...] | None = None
    costs: tuple[LayerCost, ...] | None = None

    def summary(self) -> dict[str, str]:
        """How far the program is from its model, on which text."""
        report = self.report
        told = {
            "KL": f"{report.kl:.2e} nats a token",
            "perplexity": f"{report.reference_perplexity:.4g} to {report.candidate_perplexity:.4g}",
            "same top token": f"{report.top1:.2%}",
            "corpus": f"{self.corpus.get('name', 'given')}, {report.tokens:,} tokens",
        }
        if report.tasks:
            told["exact"] = f"{report.candidate_exact} of {report.tasks}, the model {report.reference_exact}"
        if self.broken is not None:
            told["budget"] = "; ".join(self.broken) or "kept"
        return told

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return self.report.to_json() | {
            "corpus": self.corpus,
            "broken": None if self.broken is None else list(self.broken),
            "costs": None if self.costs is None else [asdict(cost) for cost in self.costs],
        }
