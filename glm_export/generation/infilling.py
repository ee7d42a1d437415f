"""GLM's own tasks over any session: filling blanks in a text, and judging by what would fill one.

Source: GLM, arXiv:2103.10360: blank infilling (2.1), cloze classification with pattern and verbalizer (2.3).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from glm_export.errors import InputError
from glm_export.generation.finite import require_finite
from glm_export.generation.generate import generate_ids
from glm_export.generation.sampling import Sampling
from glm_export.generation.stopping import Stopping
from glm_export.generation.texts import drafts_of
from glm_export.sessions.session import Session
from glm_export.tokenizers.ice_text import IceTextTokenizer
from glm_export.tokenizers.infilling import InfillingTokenizer

logger = logging.getLogger(__name__)
BlankTokenizer = InfillingTokenizer | IceTextTokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Infilled:
    """A text whose blanks are filled: the whole text, and what was written into each, in order."""

    text: str
    fills: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelScore:
    """How likely a label is in the blank. Logarithms are natural; ``mean`` is over the label's tokens."""

    label: str
    tokens: int
    log_probability: float

    @property
    def mean(self) -> float:
        """Log-probability a token: labels of different lengths compare."""
        return self.log_probability / self.tokens


def blank_tokenizer(session: Session) -> BlankTokenizer:
    """The session's tokenizer, where its model fills blanks.

    Raises:
        InputError: the model's family has no blanks.
    """
    tokenizer = session.tokenizer
    if not isinstance(tokenizer, (InfillingTokenizer, IceTextTokenizer)):
        raise InputError(
            f"family {session.config.family} has no blanks to fill; GLM and ChatGLM-6B do, use generate for the others"
        )
    return tokenizer


def blank_context(tokenizer: BlankTokenizer, text: str) -> list[int]:
    """Ids of a text with blanks, before the start of a piece.

    Raises:
        InputError: no blank, or blanks of two kinds.
    """
    plain = isinstance(tokenizer, IceTextTokenizer)
    ids = tokenizer.encode_plain(text) if plain else tokenizer.encode(text)
    kinds = [kind for kind, token in tokenizer.mask_ids.items() if token in ids]
    if not kinds:
        known = "[MASK]" if plain else ", ".join(tokenizer.mask_ids)
        raise InputError(f"the text has no blank; this model knows {known}, put one where it should write")
    if len(kinds) > 1:
        raise InputError(f"the text has blanks of {len(kinds)} kinds ({', '.join(kinds)}); fill one kind at a time")
    return ids


def infill(
    session: Session,
    text: str,
    *,
    max_new_tokens: int = 128,
    sampling: Sampling | None = None,
    speculate: bool = False,
) -> Infilled:
    """Fill each blank in turn, from the left; what was written is part of the text for the next.

    Args:
        session: of GLM or ChatGLM-6B.
        text: with one or more ``[MASK]``, ``[sMASK]`` or ``[gMASK]``, all of one kind.
        max_new_tokens: at most this many for each blank.
        sampling: greedy when absent.
        speculate: guess what a blank takes out of the text around it; the same text.

    Raises:
        InputError: no blank, blanks of two kinds, a text longer than the position table, or guesses that cannot be
            judged.
        SessionBusyError: the session has another user; :meth:`Session.exclusive` waits for it.
    """
    tokenizer = blank_tokenizer(session)
    ids = blank_context(tokenizer, text)
    blanks = set(tokenizer.mask_ids.values())
    stop_ids = frozenset({*tokenizer.stop_ids, *session.config.eos_token_ids})
    drafts = drafts_of(session, speculate)
    fills: list[str] = []
    with session.exclusive():
        for _ in range(sum(token in blanks for token in ids)):
            place = next(index for index, token in enumerate(ids) if token in blanks)
            stopping = Stopping(max_new_tokens=max_new_tokens, stop_ids=stop_ids)
            context = [[*ids, tokenizer.sop_id]]
            (row,) = generate_ids(session, context, stopping=stopping, sampling=sampling, drafts=drafts)
            # A blank within an answer would be filled forever.
            written = [token for token in row.ids if token not in blanks]
            fills.append(tokenizer.decode(written).strip())
            ids = [*ids[:place], *written, *ids[place + 1 :]]
    return filled(tokenizer, text, fills)


def filled(tokenizer: BlankTokenizer, text: str, fills: Sequence[str]) -> Infilled:
    """A text with its blanks filled: as it was given, not as its tokens spell it, which lose what no token has."""
    whole = text
    for kind in tokenizer.mask_ids:
        for fill in fills if kind in whole else ():
            whole = whole.replace(kind, fill, 1)
    return Infilled(text=whole, fills=tuple(fills))


def score(
    session: Session, text: str, *, pattern: str, labels: Sequence[str], normalize: bool = True
) -> list[LabelScore]:
    """Classify by cloze: how likely is each label in the pattern's blank?

    Args:
        session: of GLM or ChatGLM-6B.
        text: takes the place of ``{}`` in the pattern.
        pattern: for example ``"{}. It's really [MASK]."``, with one blank.
        labels: the verbalizer's words; any number of tokens each.
        normalize: rank by log-probability a token instead of a label.

    Returns:
        One score a label, the likeliest first.

    Raises:
        InputError: a pattern without ``{}`` or without exactly one blank, no label, or one that has no token.
    """
    tokenizer = blank_tokenizer(session)
    if isinstance(labels, str) or not all(isinstance(part, str) for part in (text, pattern, *labels)):
        raise InputError("text and pattern are texts, and labels a list of texts; found something else")
    if "{}" not in pattern:
        raise InputError(f"the pattern {pattern!r} has no {{}} for the text")
    context = blank_context(tokenizer, pattern.replace("{}", text))
    if sum(token in set(tokenizer.mask_ids.values()) for token in context) != 1:
        raise InputError("a cloze has one blank; the pattern or the text has more")
    if not labels:
        raise InputError("a cloze needs labels to choose from")
    label_ids = [tokenizer.encode_plain(label) for label in labels]
    for label, ids in zip(labels, label_ids, strict=True):
        if not ids:
            raise InputError(f"the label {label!r} tokenizes to nothing; give it a word")
    _warn_of_doubtful(tokenizer, labels, label_ids)
    totals = continuation_log_probabilities(session, [*context, tokenizer.sop_id], label_ids)
    scores = [
        LabelScore(label=label, tokens=len(ids), log_probability=total)
        for label, ids, total in zip(labels, label_ids, totals, strict=True)
    ]
    return ranked(scores, normalize=normalize)


def _warn_of_doubtful(tokenizer: BlankTokenizer, labels: Sequence[str], label_ids: Sequence[Sequence[int]]) -> None:
    """Say which labels a score does not tell apart, or that the model does not know."""
    for label, ids in zip(labels, label_ids, strict=True):
        if tokenizer.unknown_id is not None and tokenizer.unknown_id in ids:
            logger.warning("the label %s holds what the tokenizer has no token for: its score is of an unknown", label)
    first: dict[tuple[int, ...], str] = {}
    for label, ids in zip(labels, label_ids, strict=True):
        if tuple(ids) in first:
            told = "the labels %s and %s are the same tokens, and so have the same score"
            logger.warning(told, first[tuple(ids)], label)
        first.setdefault(tuple(ids), label)


def ranked(scores: Sequence[LabelScore], *, normalize: bool) -> list[LabelScore]:
    """The likeliest first, by log-probability a token or a label."""
    return sorted(scores, key=lambda s: -(s.mean if normalize else s.log_probability))


def continuation_log_probabilities(
    session: Session, prompt_ids: Sequence[int], continuations: Sequence[Sequence[int]]
) -> list[float]:
    """Natural log-probability of each continuation of one prompt, token by token over the cache.

    Works with programs that compute the last row of logits alone.

    Raises:
        NonFiniteError: logits are NaN or infinite.
    """
    prompt = session.prompt(prompt_ids)
    with session.exclusive():
        feeds = session.feeds([prompt] * len(continuations))
        logits_BV = feeds.last_logits(session.prefill(feeds))
        totals = np.zeros(len(continuations))
        for step in range(max(map(len, continuations))):
            judged = [row for row, ids in enumerate(continuations) if step < len(ids)]
            require_finite(session, logits_BV, step + 1, judged)
            last_BV = logits_BV.astype(np.float64)
            peak_B1 = last_BV.max(axis=-1, keepdims=True)
            log_BV = last_BV - peak_B1 - np.log(np.exp(last_BV - peak_B1).sum(axis=-1, keepdims=True))
            for row in judged:
                totals[row] += log_BV[row, continuations[row][step]]
            if step + 1 < max(map(len, continuations)):
                next_ids = [ids[min(step, len(ids) - 1)] for ids in continuations]
                feeds = feeds.next_step(next_ids, session.last_position(feeds))
                logits_BV = feeds.last_logits(session.decode(feeds))
    return [float(total) for total in totals]
