"""From logits to the next token on the device: the arithmetic of ``generation.sampling``, in PyTorch's operators.

Nothing here waits for the device or depends on values there, so it can be captured. Scores are float64, as on the host;
a draw is the host's own, made beforehand, and picks the same token unless it falls on the last bits of a boundary.
Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """How a token is drawn: ``temperature`` above 0; ``top_k`` 0 and ``top_p`` 1 are off."""

    temperature: float
    top_k: int
    top_p: float


def likeliest(logits_BV: Tensor) -> Tensor:
    """The first of the likeliest tokens, int64 ``[B]``."""
    return logits_BV.argmax(dim=-1)


def drawn(logits_BV: Tensor, draws_B: Tensor, how: Draw) -> Tensor:
    """The token whose share of the distribution a draw in ``[0, 1)`` falls in, int64 ``[B]``.

    Penalties come before and need the text, so they are the host's.
    """
    scores_BV = logits_BV.double()
    scores_BV = (scores_BV - scores_BV.amax(dim=-1, keepdim=True)) / how.temperature
    scores_BV = _keep_top_p(_keep_top_k(scores_BV, how.top_k), how.top_p)
    # As numpy's Generator.choice: cumulated, divided by the last, searched from the right.
    shares_BV = torch.softmax(scores_BV, dim=-1).cumsum(dim=-1)
    shares_BV = shares_BV / shares_BV[:, -1:]
    found_B = torch.searchsorted(shares_BV, draws_B[:, None], right=True)[:, 0]
    # Where no logit is a number nothing is found; such a row ends with an error.
    return found_B.clamp(max=logits_BV.shape[-1] - 1)


def _keep_top_k(scores_BV: Tensor, top_k: int) -> Tensor:
    if top_k == 0 or top_k >= scores_BV.shape[-1]:
        return scores_BV
    threshold_B1 = scores_BV.topk(top_k, dim=-1).values[:, -1:]
    return scores_BV.masked_fill(scores_BV < threshold_B1, -torch.inf)


def _keep_top_p(scores_BV: Tensor, top_p: float) -> Tensor:
    if top_p >= 1.0:
        return scores_BV
    sorted_BV, ascending_BV = scores_BV.sort(dim=-1, stable=True)
    dropped_BV = torch.softmax(sorted_BV, dim=-1).cumsum(dim=-1) <= 1.0 - top_p
    # The likeliest stays, whatever the rounding.
    dropped_BV = torch.cat([dropped_BV[:, :-1], torch.zeros_like(dropped_BV[:, -1:])], dim=-1)
    return scores_BV.masked_fill(torch.zeros_like(dropped_BV).scatter(-1, ascending_BV, dropped_BV), -torch.inf)
