"""Rows that go on by several tokens a step: guesses are read with a row's own token, judged, and cut off."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from itertools import count
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from glm_export.errors import InputError
from glm_export.generation.drafts import (
    EXPERTS_COLUMN_COST,
    PROMPT_FORM_COST,
    DraftOptions,
    PromptLookup,
    drafts_beside,
)
from glm_export.generation.finite import lost_rows, not_finite, place_of
from glm_export.generation.sampling import Sampler
from glm_export.inputs.feeds import Feeds
from glm_export.inputs.prompts import Prompt
from glm_export.sessions.session import Session


class Written(Protocol):
    """A row, and what was written of it so far."""

    prompt: Prompt
    ids: list[int]


class Asked(Protocol):
    """Rows that are written; whoever reads the tokens says which have ended."""

    @property
    def rows(self) -> Sequence[Written]:
        """In the order of the batch."""

    def left(self, row: int) -> int:
        """Tokens that may still be written of a row; 0 where it has ended."""


def draft_options(session: Session) -> DraftOptions:
    """How rows of a session guess.

    A token's numbers may depend on what stands beside it only where weights of a second, finer form multiply calls of
    many tokens: there guesses are as many as make that form judge them.

    Raises:
        InputError: its program tells too few logits, or a token's numbers depend on what stands beside it in a call.
    """
    if session.config.prefix_mask and not session.signature.own_lengths:
        raise InputError(
            f"prompts of family {session.config.family} are padded together in this dialect, and nothing is guessed "
            "there; export with --dialect ort"
        )
    if session.signature.last_logits_only:
        raise InputError(
            "guesses are judged by the logits of each, and this program tells the last token's alone; export it with "
            "--logits recent (dialect ort) or --logits all"
        )
    if session.prompt_form_tokens is not None:
        return DraftOptions(call_cost=PROMPT_FORM_COST, least=session.prompt_form_tokens)
    if session.rounds_by_call:
        raise InputError(
            "a token alone is rounded otherwise than beside guesses in this recipe, so guesses would change the text; "
            "export with --recipe int8-token, or without a recipe, or leave --speculate out"
        )
    return DraftOptions() if session.config.experts is None else DraftOptions(column_cost=EXPERTS_COLUMN_COST)


def drafted_tokens(
    session: Session, feeds: Feeds, asked: Asked, samplers: Sequence[Sampler], options: DraftOptions
) -> Generator[list[Sequence[int]], None, None]:
    """Ids for each row from the second token on, step by step, one or more; none of a row that has ended.

    Args:
        session: its cache holds the prompts.
        feeds: of the last call.
        asked: the rows; each has a token that was not read yet.
        samplers: of each row; as many are drawn as are written.
        options: when to guess.

    Raises:
        InputError: rows are padded together, and there are several.
        NonFiniteError: logits of a row still written are NaN or infinite.
    """
    if feeds.batch > 1 and not session.signature.own_lengths:
        raise InputError(
            f"{feeds.batch} prompts are padded together in this dialect, and guessed of one at a time; give them one "
            "after another, or export with --dialect ort"
        )
    lookups = [PromptLookup(options) for _ in asked.rows]
    # Weights of a second form would multiply rows without guesses as well.
    most = drafts_beside(len(lookups), packed=session.signature.ragged and options.least == 1)
    for step in count(2):
        given = [_given(row, lookups[at], asked.left(at), most) for at, row in enumerate(asked.rows)]
        feeds = feeds.next_tokens(given)
        logits_BSV = session.decode(feeds)
        lengths = feeds.row_lengths
        chosen: list[Sequence[int]] = []
        for at, tokens in enumerate(given):
            logits_SV = logits_BSV[at, : len(tokens)]
            if tokens and lost_rows(logits_SV):
                raise not_finite(session.describe(), place_of(step, at), logits_SV)
            chosen.append(_judged(asked.rows[at], tokens, logits_SV, samplers[at]) if tokens else ())
        for at, (tokens, new) in enumerate(zip(given, chosen, strict=True)):
            # The last of what was chosen is read with the next step, as the row's own.
            if len(new) < len(tokens):
                feeds = session.truncate(feeds, at, int(lengths[at]) - len(tokens) + len(new))
        yield chosen


def _given(row: Written, lookup: PromptLookup, left: int, most: int) -> list[int]:
    """A row's own token and guesses behind it; nothing of a row that has ended."""
    if not left:
        return []
    # A step writes one token more than it has right guesses.
    return [row.ids[-1], *lookup([*row.prompt.ids, *row.ids], min(most, left - 1))]


def _judged(row: Written, tokens: list[int], logits_SV: NDArray[np.float32], sampler: Sampler) -> list[int]:
    """What the row writes: a token behind its own, and behind each guess as long as that is what it wrote."""
    chosen: list[int] = []
    for guess, logits_V in zip([*tokens[1:], None], logits_SV, strict=True):
        written = [*row.ids, *chosen]
        chosen.append(sampler.choose(logits_V, [*row.prompt.ids, *written], written))
        if chosen[-1] != guess:
            break
    return chosen
