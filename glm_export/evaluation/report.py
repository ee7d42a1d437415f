"""A quality report judged: what exceeded the budget, and which layer cost how much."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # exported folders are measured without torch
    from glm_export.evaluation.layer_costs import LayerCost


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityReport:
    """What separates a candidate from its reference.

    ``tokens`` were predicted, in ``samples``; figures are means over them. Perplexity: ``exp(mean(-log p(true
    token)))``. ``kl``: ``sum(p * (log p - log q))`` over the vocabulary, p the reference's distribution, q the
    candidate's, in nats (Kullback and Leibler 1951); ``kl_99``: its 99th percentile, by nearest rank. ``top1``: share
    of tokens where both find the same one likeliest. ``top5``: how many of the reference's five likeliest are among
    the candidate's, over five, in any order. ``worst_sample``: index in the corpus of the largest mean KL, which is
    ``worst_kl``. Figures are infinite where the candidate gives probability 0 to what the reference may say.

    ``greedy_rows`` prompts were continued by both, up to ``greedy_tokens`` tokens or the end of the text.
    ``greedy_identical`` came out alike; ``greedy_first_difference`` is the median step (the first token is step 1)
    where the others part, None where none does. ``tasks`` were asked, of which each side did so many exactly.
    """

    corpus: dict[str, Any]
    samples: int
    tokens: int
    reference_perplexity: float
    candidate_perplexity: float
    kl: float
    kl_99: float
    kl_largest: float
    top1: float
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

    @property
    def perplexity_ratio(self) -> float:
        """The candidate's perplexity over the reference's."""
        return self.candidate_perplexity / self.reference_perplexity

    @property
    def greedy_share(self) -> float | None:
        """Share of greedy rows that are identical; None where none was written."""
        return self.greedy_identical / self.greedy_rows if self.greedy_rows else None

    @property
    def recall(self) -> float | None:
        """Tasks the candidate does exactly over those the reference does; None where it does none."""
        return self.candidate_exact / self.reference_exact if self.reference_exact else None

    def to_json(self) -> dict[str, Any]:
        """Plain values, shares and ratios included; infinity, which JSON has not, as the text ``"Infinity"``."""
        values = asdict(self) | {name: getattr(self, name) for name in ("perplexity_ratio", "greedy_share", "recall")}
        return {name: "Infinity" if value == math.inf else value for name, value in values.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityVerdict:
    """``corpus``: its provenance. ``broken``: a sentence for each limit exceeded; None where there was no budget."""

    report: QualityReport
    corpus: dict[str, Any]
    broken: tuple[str, ...] | None = None
    costs: tuple[LayerCost, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return self.report.to_json() | {
            "corpus": self.corpus,
            "broken": None if self.broken is None else list(self.broken),
            "costs": None if self.costs is None else [asdict(cost) for cost in self.costs],
        }
