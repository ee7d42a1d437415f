"""Greedy texts of both sides beside each other: where they part, and how near the tokens were to a tie there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from glm_export.errors import GlmExportError, NonFiniteError
from glm_export.generation.generate import generate_ids
from glm_export.generation.stopping import Stopping
from glm_export.inputs.prompts import Prompt
from glm_export.progress import NullProgress, Progress
from glm_export.proof.cases import random_prompt
from glm_export.proof.compare import TOLERANCES
from glm_export.proof.measures.tokens import margin
from glm_export.sessions.session import Session

GREEDY_TOKENS = 32
IN_COMPANY, ALONE = "in a padded batch", "alone"


@dataclass(frozen=True, slots=True, kw_only=True)
class GreedyText:
    """What both sides write behind one prompt, each with its own cache.

    ``how``: the candidate's row, in a padded batch or alone; the reference's is always in the batch. ``parted``: the
    first place, from 0, where the tokens differ; None where none does. The margins are each side's own at that place,
    its likeliest token's logit less the second's, behind the same tokens, the row alone: None where the texts do not
    part, or the side gives no numbers. ``tie``: a margin that rounding alone may turn, as two logits may each be off by
    the coarser dtype's tolerance.
    """

    prompt: tuple[int, ...]
    how: str
    reference: tuple[int, ...]
    candidate: tuple[int, ...]
    parted: int | None = None
    reference_margin: float | None = None
    candidate_margin: float | None = None
    tie: float | None = None
    prompt_text: str | None = None
    reference_texts: tuple[str | None, ...] = ()
    candidate_texts: tuple[str | None, ...] = ()

    @property
    def near_tie(self) -> bool:
        """Whether they part where the reference itself hardly prefers one token: no defect shows in that."""
        return self.reference_margin is not None and self.tie is not None and self.reference_margin <= self.tie

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"near_tie": self.near_tie}


@dataclass(frozen=True, slots=True, kw_only=True)
class GreedyReport:
    """Every text that was written. ``equal`` of ``total`` tokens are alike, place by place."""

    texts: tuple[GreedyText, ...]
    equal: int
    total: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"equal": self.equal, "total": self.total, "texts": [text.to_json() for text in self.texts]}


def greedy_agreement(
    reference: Session,
    candidate: Session,
    seed: int = 1,
    *,
    rows: int = 3,
    max_tokens: int = 0,
    decode: Callable[[int], str | None] = lambda _: None,
    progress: Progress | None = None,
) -> GreedyReport:
    """Greedy tokens both sides write, prompts one after another and as a padded batch.

    A candidate that cannot choose a token, because its logits are not finite, writes none alike.

    Args:
        reference: writes the batch.
        candidate: writes the batch, and each prompt alone.
        seed: of the prompts, whose ids are random.
        rows: of the batch at most.
        max_tokens: tokens the candidate can hold; 0: the context.
        decode: an id's text, for people.
        progress: shows texts that are written.

    Raises:
        NonFiniteError: the reference's logits are not finite.
    """
    config = reference.config
    random = np.random.default_rng(seed)
    prompts = [random_prompt(random, length, config) for length in (12, 5, 2)[:rows]]
    room = (max_tokens or config.max_columns) - config.prefix_length
    stopping = Stopping(max_new_tokens=min(GREEDY_TOKENS, room - 16))
    advance = (progress or NullProgress()).task("texts", 3 * len(prompts))

    def written(session: Session, some: Sequence[Prompt]) -> list[list[int]]:
        rows = [row.ids for row in generate_ids(session, some, stopping=stopping)]
        advance(len(some))
        return rows

    batch = written(reference, prompts)
    try:
        answers = written(candidate, prompts)
        alone = [written(candidate, [prompt])[0] for prompt in prompts]
    except NonFiniteError:
        advance(2 * len(prompts))
        answers = alone = [[] for _ in prompts]
    texts = [
        _text(reference, candidate, prompt, (expected, found), how, decode)
        for prompt, expected, *both in zip(prompts, batch, answers, alone, strict=True)
        for how, found in zip((IN_COMPANY, ALONE), both, strict=True)
    ]
    alike = [a == b for text in texts for a, b in zip(text.reference, text.candidate, strict=bool(text.candidate))]
    return GreedyReport(texts=tuple(texts), equal=sum(alike), total=2 * sum(map(len, batch)))


def _text(
    reference: Session,
    candidate: Session,
    prompt: Prompt,
    written: tuple[Sequence[int], Sequence[int]],
    how: str,
    decode: Callable[[int], str | None],
) -> GreedyText:
    expected, found = written
    parted = next((n for n, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), None)
    margins: list[tuple[float, float] | None] = [None, None]
    if parted is not None:
        margins = [_margin_behind(side, prompt, expected[:parted]) for side in (reference, candidate)]
    elif not found:
        parted = 0
    looser = max(TOLERANCES[side.describe().dtype] for side in (reference, candidate))
    ours, theirs = margins
    return GreedyText(
        prompt=prompt.ids,
        how=how,
        reference=tuple(expected),
        candidate=tuple(found),
        parted=parted,
        reference_margin=ours and ours[0],
        candidate_margin=theirs and theirs[0],
        tie=ours and 2 * looser * ours[1],
        prompt_text="".join(decode(token) or "" for token in prompt.ids) or None,
        reference_texts=tuple(map(decode, expected)),
        candidate_texts=tuple(map(decode, found)),
    )


def _margin_behind(session: Session, prompt: Prompt, written: Sequence[int]) -> tuple[float, float] | None:
    """Margin and largest logit behind a prompt and some tokens; None where the session gives no numbers."""
    with session.exclusive():
        feeds = session.feeds([prompt])
        logits_BV = feeds.last_logits(session.prefill(feeds))
        for token in written:
            feeds = feeds.next_step([token], session.last_position(feeds))
            logits_BV = feeds.last_logits(session.decode(feeds))
    finite = bool(np.isfinite(logits_BV[0]).all())
    return (margin(logits_BV[0]), float(np.abs(logits_BV[0]).max())) if finite else None


def token_text(session: Session) -> Callable[[int], str | None]:
    """How a session's tokenizer writes single tokens; None for every one where the folder has no tokenizer.

    Args:
        session: whose folder is read.
    """
    try:
        tokenizer = session.tokenizer
    except GlmExportError:
        return lambda _: None

    def text(token: int) -> str | None:
        try:
            return tokenizer.decode([token]) or None
        except GlmExportError:
            return None

    return text
