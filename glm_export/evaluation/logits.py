"""Logits of many rows, in batches that fit memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from glm_export.errors import InputError
from glm_export.inputs.prompts import Prompt, prefill_feeds
from glm_export.sessions.session import Logits, Session

BATCH_BYTES = 256 << 20
"""Logits of one batch take no more, unless one row alone does."""
BATCH_ROWS = 64


class _Row(NamedTuple):
    """A prompt, what of it is read before the first prediction, and how many ids are predicted."""

    prompt: Prompt
    beginning: Prompt
    predicted: int


def row_logits(session: Session, prompts: Sequence[Prompt], first: Sequence[int]) -> Iterator[Logits]:
    """What a session predicts for each row's ids, given the true ones before each.

    A session with logits of all tokens reads a padded batch at once; one with those of the last token alone reads up
    to the first predicted id, and from there one id at a time. One batch is in memory, of :data:`BATCH_BYTES` at most;
    neighbours of like length need the least padding. In steps, what a recipe costs in reading prompts hardly shows:
    where it has another form for them, or one scale a call, measure a program with logits of all tokens as well.

    Args:
        session: its cache is taken over.
        prompts: of any lengths.
        first: for each the index of the first predicted id; for prefix families behind ``<sop>``.

    Yields:
        For each prompt float32 ``[S - first, V]``; row ``k`` predicts ``ids[first + k]``.

    Raises:
        InputError: an index that leaves nothing to read or to predict, a row longer than the context, or what the
            session refuses.
    """
    rows: list[_Row] = []
    for prompt, start in zip(prompts, first, strict=True):
        if not prompt.context_length < start < len(prompt.ids):
            raise InputError(
                f"some of {len(prompt.ids)} ids should be predicted, found {start} first; leave the row out"
            )
        # What is read has to fit, in however many steps; the last id is only predicted.
        prefill_feeds([replace(prompt, ids=prompt.ids[:-1])], session.config)
        rows.append(_Row(prompt, replace(prompt, ids=prompt.ids[:start]), len(prompt.ids) - start))
    if rows:
        # Two tokens tell what the session gives.
        two = replace(rows[0].prompt, ids=rows[0].prompt.ids[:2], context_length=0, mask_position=0)
        all_told = session.prefill(session.feeds([two])).shape[1] > 1 and session.signature.most_logits is None
        read = _read_at_once if all_told else _read_in_steps
        for group in _groups(session, rows):
            yield from read(session, group)


def rows_at_once(session: Session) -> int:
    """How many rows may stand in a batch and not change each other's answers; alone is how one user runs."""
    return min(BATCH_ROWS, session.max_rows or BATCH_ROWS) if session.batch_invariance.usable else 1


def _groups(session: Session, rows: Sequence[_Row]) -> Iterator[list[_Row]]:
    """Neighbours that fit one batch, in bytes of logits and in columns of the cache."""
    most, group = rows_at_once(session), list(rows[:1])
    for row in rows[1:]:
        wanted = [*group, row]
        # The longest beginning and the longest rest may come from different rows.
        longest = max(one.predicted for one in wanted)
        columns = longest + max(len(one.beginning.ids) for one in wanted)
        small = 4 * len(wanted) * columns * session.config.vocab_size <= BATCH_BYTES
        if len(wanted) > most or not small or min(session.remaining_tokens(one.beginning) for one in wanted) < longest:
            yield group
            wanted = [row]
        group = wanted
    yield group


def _read_at_once(session: Session, rows: Sequence[_Row]) -> Iterator[Logits]:
    """The last id is only predicted."""
    feeds = session.feeds([replace(row.prompt, ids=row.prompt.ids[:-1]) for row in rows])
    logits_BSV = session.prefill(feeds)
    for row, logits_SV, last in zip(rows, logits_BSV, feeds.last_token_ids, strict=True):
        yield logits_SV[last + 1 - row.predicted : last + 1]


def _read_in_steps(session: Session, rows: Sequence[_Row]) -> Iterator[Logits]:
    """The whole batch before its first row is given out: whoever takes it may use the session in between."""
    with session.exclusive():
        feeds = session.feeds([row.beginning for row in rows])
        logits_BV = feeds.last_logits(session.prefill(feeds))
        found = [np.empty((row.predicted, logits_BV.shape[-1]), np.float32) for row in rows]
        longest = max(row.predicted for row in rows)
        last_position = session.config.prefix_length + max(len(row.prompt.ids) for row in rows) - 1
        for step in range(longest):
            for row, kept_SV, logits_V in zip(rows, found, logits_BV, strict=True):
                if step < row.predicted:
                    kept_SV[step] = logits_V
            if step + 1 < longest:
                next_ids = [row.prompt.ids[min(step - row.predicted, -1)] for row in rows]
                feeds = feeds.next_step(next_ids, last_position)
                logits_BV = feeds.last_logits(session.decode(feeds))
    yield from found
