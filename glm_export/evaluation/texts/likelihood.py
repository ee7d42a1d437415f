"""How likely a model finds texts: logits of every token, and log-probabilities of what follows a context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from glm_export.errors import InputError
from glm_export.evaluation.logits import row_logits
from glm_export.generation.texts import TextOrIds, prompt_ids
from glm_export.sessions.session import Logits, Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Likelihood:
    """How likely a continuation is behind its context.

    ``ids``: of the continuation. ``logprobs``: natural log-probability of each, given all before it. ``greedy``:
    whether greedy decoding writes just these.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    greedy: bool

    @property
    def total(self) -> float:
        """Log-probability of the whole continuation."""
        return sum(self.logprobs)

    @property
    def mean(self) -> float:
        """Log-probability a token: continuations of different lengths compare."""
        return self.total / len(self.ids)


def logits(session: Session, text: TextOrIds) -> Logits:
    """What a model says behind each token of a text that is given ("teacher forcing").

    A program with the last token's logits alone is read token by token.

    >>> from glm_export import load_session, logits
    >>> with load_session("demo") as session:
    ...     scores = logits(session, "床前明月光，疑是地上霜")
    ...     session.tokenizer.decode([int(scores[-1].argmax())])
    '。'

    Args:
        session: from :func:`load_session`; its cache is taken over.
        text: a text, or token ids.

    Returns:
        float32 ``[S, V]`` for ``S`` ids: row ``k`` is what follows ids ``0 … k``. For GLM and ChatGLM-6B, whose context
        sees itself and predicts nothing, rows begin with the one behind the context's ``<sop>``.

    Raises:
        InputError: a text without tokens, or one the model has no room for.
        SessionBusyError: the session has another user.
    """
    ids = prompt_ids(session, text)
    prompt = session.prompt(ids)
    # The last id is only predicted, so one stands behind the text.
    longer = session.prompt([*ids, session.config.pad_token_id])
    (found_SV,) = row_logits(session, [longer], [prompt.context_length + 1])
    return found_SV


def loglikelihood(session: Session, requests: Sequence[tuple[TextOrIds, TextOrIds]]) -> list[Likelihood]:
    """How likely each continuation is behind its context, as lm-evaluation-harness asks it.

    A text is cut into tokens together with its context (the harness's rule), so that a blank between the two, or a
    character of both, is what it is in running text. GLM and ChatGLM-6B, whose context ends in ``<sop>``, write a
    continuation as a text of its own.

    >>> from glm_export import load_session, loglikelihood
    >>> with load_session("demo") as session:
    ...     known, other = loglikelihood(session, [("床前明月光，", "疑是地上霜。"), ("床前明月光，", "万径人踪灭。")])
    >>> known.greedy, known.total > other.total
    (True, True)

    Args:
        session: from :func:`load_session`; its cache is taken over.
        requests: pairs of context and continuation, each a text or token ids.

    Returns:
        One a pair, in their order.

    Raises:
        InputError: a continuation without tokens, or a pair the model has no room for.
        SessionBusyError: the session has another user.
    """
    pairs = [_ids_of_pair(session, context, continuation) for context, continuation in requests]
    prompts = [session.prompt([*context, *continuation]) for context, continuation in pairs]
    rows = row_logits(session, prompts, [len(context) for context, _ in pairs])
    return [_likelihood(continuation, logits_SV) for (_, continuation), logits_SV in zip(pairs, rows, strict=True)]


def _ids_of_pair(session: Session, context: TextOrIds, continuation: TextOrIds) -> tuple[list[int], list[int]]:
    before = prompt_ids(session, context)
    if not isinstance(continuation, str):
        behind = prompt_ids(session, continuation)
    elif session.config.prefix_mask or not isinstance(context, str):
        behind = session.tokenizer.encode_plain(continuation)
    else:
        # Blanks at a context's end belong to the word behind them.
        blanks = len(context) - len(context.rstrip())
        whole = session.encode(context + continuation)
        if blanks:
            before = session.encode(context[:-blanks])
        behind = whole[len(before) :]
    if not before or not behind:
        raise InputError(
            f"context and continuation need a token each, found {len(before)} and {len(behind)}; give both some text"
        )
    return before, behind


def _likelihood(ids: list[int], logits_SV: Logits) -> Likelihood:
    scores_SV = logits_SV.astype(np.float64)
    scores_SV -= scores_SV.max(axis=-1, keepdims=True)
    scores_SV -= np.log(np.exp(scores_SV).sum(axis=-1, keepdims=True))
    logprobs = scores_SV[np.arange(len(ids)), ids]
    greedy = bool((logits_SV.argmax(axis=-1) == np.asarray(ids)).all())
    return Likelihood(ids=tuple(ids), logprobs=tuple(map(float, logprobs)), greedy=greedy)
