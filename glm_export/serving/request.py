"""What is asked of an engine, and what it answers, step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from glm_export.generation.sampling import Sampling
from glm_export.inputs.prompts import Prompt


class Matcher(Protocol):
    """Says which tokens may come next, token by token."""

    @property
    def allowed(self) -> NDArray[np.bool_]:
        """Those that may, ``[V]``."""

    def accept(self, token: int) -> None:
        """Go on behind a token that was chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One row to be written.

    ``key``: of this request alone. ``tenant``: whose it is; rows of one are never begun with what another's read.
    ``priority``: higher comes first, and may take the place of a lower one. ``stop_ids``: end the row, and are no part
    of it; none is chosen before there are ``min_new_tokens``. ``ends``: called with each id that was written, says
    whether the row ends there (a stop string). ``top_logprobs``: how many alternatives are told with each token; None
    tells no log-probabilities.
    ``prompt_logprobs``: those of the prompt's own tokens, too. ``drafts``: guesses what follows prompt and answer so
    far; guesses are read together, and kept where the request writes them.
    """

    key: str
    prompt: Prompt
    sampling: Sampling = field(default_factory=Sampling)
    max_new_tokens: int = 128
    min_new_tokens: int = 0
    stop_ids: frozenset[int] = frozenset()
    ends: Callable[[int], bool] | None = None
    tenant: str = ""
    priority: int = 0
    top_logprobs: int | None = None
    prompt_logprobs: bool = False
    matcher: Matcher | None = None
    drafts: Callable[[Sequence[int]], Sequence[int]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """Natural logarithms of probabilities before anything is asked of them: of a token, and of the likeliest."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a request.

    ``token``: what was written; None where nothing was. ``logprobs``: of it. ``prompt_logprobs``: of the prompt's
    second token and those behind it, once, before the first token. ``finish_reason``: stop, length, context, cancelled
    or error, with the last event; ``error`` says which. ``cached_tokens``: of the prompt, not read again.
    """

    key: str
    token: int | None = None
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: str | None = None
    error: Exception | None = None
    cached_tokens: int = 0


def logprobs_of(logits_V: NDArray[np.float32], token: int, top: int) -> TokenLogprobs:
    """Of one row's logits float32 ``[V]``; the ``top`` likeliest, the likeliest first, ties by id."""
    scores: NDArray[Any] = logits_V.astype(np.float64)
    peak = scores.max()
    log_V = scores - peak - np.log(np.exp(scores - peak).sum())
    count = min(top, len(log_V))
    best = np.argpartition(-log_V, count - 1)[:count] if count else np.zeros(0, np.int64)
    ordered = sorted(((int(i), float(log_V[i])) for i in best), key=lambda pair: (-pair[1], pair[0]))
    return TokenLogprobs(token=token, logprob=float(log_V[token]), top=tuple(ordered))
