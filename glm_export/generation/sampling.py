"""From logits to the next token: greedy, or drawn with temperature, top-k, top-p, min-p and penalties.

The order is that of transformers' ``generate``: biases, penalties, whatever the caller's own processors do,
temperature, top-k, top-p, min-p. Scores are float64 from
the penalties on, and the largest is taken off before the temperature divides: no setting overflows.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm_export.errors import InputError, shown
from glm_export.spec.option import described, listed

Scores = NDArray[np.floating[Any]]
LogitsProcessor = Callable[[Sequence[int], NDArray[np.float64]], NDArray[np.floating[Any]]]
"""Takes a row's ids (prompt and written) and its scores ``[V]``, and gives scores ``[V]``; minus infinity is never
written. It may change the array it is given."""
DRAWN_BLOCK = 256
"""Chances that are added up at once where one is drawn."""
COLDEST = 1e-5
"""Below this temperature a token is chosen greedily, as vLLM does: float32 noise of logits is larger."""

BOUNDS: dict[str, tuple[Any, float, float, str]] = {
    "temperature": (Real, 0, sys.float_info.max, "a number, 0 (greedy) or more"),
    "top_k": (Integral, 0, math.inf, "a whole number, 0 (off) or more"),
    "top_p": (Real, 0, 1, "from 0 (the likeliest alone) to 1 (all)"),
    "min_p": (Real, 0, 1, "from 0 (off) to 1 (the likeliest alone)"),
    "presence_penalty": (Real, -2, 2, "from -2 to 2, 0 (off)"),
    "frequency_penalty": (Real, -2, 2, "from -2 to 2, 0 (off)"),
    "repetition_penalty": (Real, math.ulp(0), sys.float_info.max, "a number above 0"),
    "seed": (Integral, 0, math.inf, "a whole number, 0 or more"),
}
"""Of each option its kind, its least and largest value, and both in words."""


@listed
@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a token is chosen: of the likeliest alone, or drawn.

    ``logit_bias``: added to the scores of these ids; minus infinity forbids one. ``processors``: called for each token
    in their order, behind penalties and before the temperature, as transformers calls its own.
    """

    temperature: float = field(default=0.0, metadata=described("0 is greedy."))
    top_k: int = field(default=0, metadata=described("Draw from the k likeliest; 0: all."))
    top_p: float = field(default=1.0, metadata=described("Draw from this probability mass."))
    min_p: float = field(default=0.0, metadata=described("Draw from tokens this share as likely as the first."))
    presence_penalty: float = field(default=0.0, metadata=described("Taken off scores of tokens written before."))
    frequency_penalty: float = field(default=0.0, metadata=described("Taken off for each time a token was written."))
    repetition_penalty: float = field(default=1.0, metadata=described("Above 1 avoids repeats."))
    seed: int | None = field(default=None, metadata=described("Makes draws repeatable."))
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    processors: Sequence[LogitsProcessor] = ()

    @property
    def greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature < COLDEST

    @property
    def changes_scores(self) -> bool:
        """Whether tokens are chosen by other scores than the model's own: by the text before them, or by the caller."""
        penalized = self.repetition_penalty != 1.0 or self.presence_penalty != 0 or self.frequency_penalty != 0
        return penalized or bool(self.logit_bias) or bool(self.processors)

    def __post_init__(self) -> None:
        # Whoever calls may give anything.
        for name, (kind, least, most, expected) in BOUNDS.items():
            value = getattr(self, name)
            if name == "seed" and value is None:
                continue
            if not isinstance(value, kind) or not least <= value <= most:
                raise InputError(f"{name} must be {expected}, found {shown(value)}")
        biases: Mapping[Any, Any] = self.logit_bias
        for token, bias in biases.items():
            # Infinity would make a softmax of nothing but it; minus infinity is how a token is forbidden.
            if not isinstance(token, Integral) or token < 0 or not isinstance(bias, Real) or not bias < math.inf:
                raise InputError(
                    f"logit_bias maps ids of tokens, 0 or more, to numbers, found {shown(token)}: {shown(bias)}"
                )


def bias_scores(scores_V: Scores, logit_bias: Mapping[int, float]) -> Scores:
    """Add biases to the scores of their tokens (OpenAI's ``logit_bias``).

    Raises:
        InputError: an id that the vocabulary has not.
    """
    if not logit_bias:
        return scores_V
    ids = np.fromiter(logit_bias, np.int64, len(logit_bias))
    if ids.max() >= scores_V.size:
        raise InputError(f"logit_bias names token {ids.max()}, and the vocabulary ends at {scores_V.size - 1}")
    scores_V = scores_V.copy()
    scores_V[ids] += np.fromiter(logit_bias.values(), np.float64, len(logit_bias))
    return scores_V


def process_scores(scores_V: Scores, ids: Sequence[int], processors: Sequence[LogitsProcessor]) -> Scores:
    """What the caller's processors make of scores.

    Raises:
        InputError: one gives something else than scores of every token, or leaves no token to write.
    """
    for processor in processors:
        given = np.asarray(processor(ids, scores_V.astype(np.float64, copy=False)))
        name = getattr(processor, "__name__", type(processor).__name__)
        if given.shape != scores_V.shape or given.dtype.kind != "f":
            raise InputError(
                f"the processor {name} should give {scores_V.shape[0]} scores in floats, found {given.dtype} "
                f"{list(given.shape)}"
            )
        scores_V = given.astype(np.float64, copy=False)
        if not scores_V.max() > -np.inf:
            raise InputError(f"the processor {name} leaves no token to write: the likeliest has {scores_V.max()}")
    return scores_V


def penalize_repetition(scores_V: Scores, seen: Sequence[int], penalty: float) -> Scores:
    """Divide positive scores of seen tokens by the penalty, multiply negative ones (CTRL, arXiv:1909.05858)."""
    if penalty == 1.0 or not seen:
        return scores_V
    ids = np.unique(np.asarray(seen))
    scores_V = scores_V.copy()
    with np.errstate(over="ignore"):
        penalized = np.where(scores_V[ids] > 0, scores_V[ids] / penalty, scores_V[ids] * penalty)
    # An extreme penalty overflows; the likeliest token is still one that can be chosen.
    most = np.finfo(scores_V.dtype).max
    scores_V[ids] = np.where(np.isfinite(scores_V[ids]), np.clip(penalized, -most, most), scores_V[ids])
    return scores_V


def penalize_written(scores_V: Scores, written: Sequence[int], sampling: Sampling) -> Scores:
    """Take presence and frequency penalties off tokens that were written (OpenAI's formula; the prompt is left out)."""
    if not written or (sampling.presence_penalty == 0 and sampling.frequency_penalty == 0):
        return scores_V
    ids, counts = np.unique(np.asarray(written), return_counts=True)
    scores_V = scores_V.copy()
    scores_V[ids] -= sampling.presence_penalty + sampling.frequency_penalty * counts
    return scores_V


def keep_min_p(scores_V: Scores, min_p: float) -> Scores:
    """Keep tokens at least ``min_p`` times as likely as the likeliest (arXiv:2407.01082)."""
    if min_p == 0:
        return scores_V
    with np.errstate(divide="ignore"):
        return np.where(scores_V < scores_V.max() + np.log(min_p), -np.inf, scores_V)


def keep_top_k(scores_V: Scores, top_k: int) -> Scores:
    """Set all but the ``top_k`` highest scores to minus infinity; ties with the last one stay."""
    if top_k == 0 or top_k >= scores_V.size:
        return scores_V
    threshold = np.partition(scores_V, -top_k)[-top_k]
    return np.where(scores_V < threshold, -np.inf, scores_V).astype(scores_V.dtype)


def keep_top_p(scores_V: Scores, top_p: float) -> Scores:
    """Keep the likeliest tokens whose probabilities reach ``top_p`` together (nucleus, arXiv:1904.09751)."""
    if top_p >= 1.0:
        return scores_V
    chances_V = probabilities(scores_V)
    # Tokens of at most this chance do not reach 1 - top_p together, however many: only the others are sorted.
    ids = np.flatnonzero(chances_V > (1.0 - top_p) / chances_V.size)
    ids = ids[np.argsort(scores_V[ids], kind="stable")]
    below = max(0.0, 1.0 - chances_V[ids].sum()) + np.cumsum(chances_V[ids])
    kept = ids[below > 1.0 - top_p]
    if not kept.size:
        kept = np.flatnonzero(scores_V == scores_V.max())[-1:]
    nucleus_V = np.full_like(scores_V, -np.inf)
    nucleus_V[kept] = scores_V[kept]
    return nucleus_V


def probabilities(scores_V: Scores) -> NDArray[np.float64]:
    """Softmax in float64; minus infinity becomes 0."""
    result: NDArray[np.float64] = scores_V.astype(np.float64)
    result -= result.max()
    np.exp(result, out=result)
    result /= float(result.sum())
    return result


def drawn(scores_V: Scores, draw: float) -> int:
    """The id that a number in ``[0, 1)`` draws: the first, in the order of ids, whose chance and theirs exceed it.

    ``scores_V`` is written over: arrays of a vocabulary's size cost more to come by than to compute.
    """
    most = scores_V.max()
    # Where nothing was taken away, nothing is gathered: that takes as long as the exponentials.
    ids = None if scores_V.min() > -np.inf else np.flatnonzero(scores_V > -np.inf)
    chances = scores_V if ids is None else scores_V[ids]
    chances -= most
    np.exp(chances, out=chances)
    at = _first_beyond(chances, draw)
    return at if ids is None else int(ids[at])


def _first_beyond(chances: Scores, draw: float) -> int:
    """The first place whose chance and those before it are more than this share of all; never one of no chance.

    Sums of blocks say in which it is: to add up one after another takes six times as long as the exponentials.
    """
    starts = np.arange(0, chances.size, DRAWN_BLOCK)
    edges = np.cumsum(np.add.reduceat(chances, starts))
    total = float(edges[-1])
    edges /= total
    block = int(edges.searchsorted(draw, side="right"))
    start = int(starts[block])
    own = chances[start : start + DRAWN_BLOCK]
    before = float(edges[block - 1]) if block else 0.0
    beyond = np.flatnonzero(before + np.cumsum(own) / total > draw)
    # Rounded otherwise than the block's sum, the block's own may end below it.
    return start + int(beyond[0] if beyond.size else np.flatnonzero(own)[-1])


class Sampler:
    """Chooses tokens one after another; the seed fixes the whole sequence."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = np.random.default_rng(sampling.seed)

    def choose(self, scores_V: Scores, seen: Sequence[int], written: Sequence[int] = ()) -> int:
        """The next id.

        Args:
            scores_V: float32 logits ``[V]``; minus infinity is never chosen while there is anything else.
            seen: prompt and generated ids, for the repetition penalty.
            written: generated ids, for presence and frequency penalties.

        Raises:
            InputError: a bias for a token that there is not, or a processor that gives no scores.
        """
        sampling = self._sampling
        if sampling.greedy and not sampling.changes_scores:
            # The largest is the largest in any width.
            return int(scores_V.argmax())
        scores_V = bias_scores(scores_V.astype(np.float64), sampling.logit_bias)
        scores_V = penalize_repetition(scores_V, seen, sampling.repetition_penalty)
        scores_V = penalize_written(scores_V, written, sampling)
        scores_V = process_scores(scores_V, seen, sampling.processors)
        if sampling.greedy:
            return int(scores_V.argmax())
        # What overflows here is minus infinity: never drawn.
        with np.errstate(over="ignore"):
            scores_V -= scores_V.max()
            scores_V /= sampling.temperature
        scores_V = keep_top_k(scores_V, sampling.top_k)
        scores_V = keep_min_p(keep_top_p(scores_V, sampling.top_p), sampling.min_p)
        return drawn(scores_V, self._random.random())

    def draws(self, count: int) -> NDArray[np.float64]:
        """What the next tokens would be drawn by, ``[count]`` in ``[0, 1)``: :meth:`choose` takes one for each."""
        return self._random.random(count)
