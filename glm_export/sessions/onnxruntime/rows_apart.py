"""Rows with different numbers of tokens, where the runtime takes no such call: some together, others one by one.

GroupQueryAttention before ONNX Runtime 1.32 reads one token a row on a past, or several of one row. What each row reads
and writes is its own part of the buffer all rows share, so nothing is moved for it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import numpy as np

from glm_export.inputs.feeds import Feeds
from glm_export.inputs.right_padded import RightPaddedFeeds
from glm_export.sessions.onnxruntime.cache import InPlace
from glm_export.sessions.session import Logits

LEAST_WIDTH = 2
"""Columns of a call that is told how many tokens each row has. For one column GroupQueryAttention has another kernel,
which moves last bits; of wider calls a row's own columns are the same to the bit. Padding is no product."""


class Caller(Protocol):
    """Runs a program once, for all rows or for one."""

    def call(self, feeds: Feeds, row: int | None = None) -> Logits:
        """Logits float32 ``[B, S, V]`` or ``[B, 1, V]``."""


def reads_evenly(feeds: RightPaddedFeeds) -> bool:
    """Whether an older runtime takes a call: prompts on no past, one token of every row, or one row."""
    width = feeds.input_ids.shape[1]
    alike = bool((feeds.new_tokens == width).all())
    return feeds.columns == width or (alike and (feeds.batch == 1 or width == 1))


def widened(feeds: RightPaddedFeeds, most_columns: int) -> RightPaddedFeeds:
    """A call of one token a row as it is beside a row of several; the same where a row's end leaves no column."""
    wide = feeds.widened(LEAST_WIDTH)
    if wide.columns > most_columns:
        return feeds
    # The operator wants as many columns in all as a call has; a row's first token alone is fewer.
    missing = max(0, LEAST_WIDTH - wide.attention_mask.shape[1])
    return replace(wide, attention_mask=np.pad(wide.attention_mask, ((0, 0), (0, missing)))) if missing else wide


def decode_apart(caller: Caller, feeds: RightPaddedFeeds, cache: InPlace, least_width: int = 1) -> Logits:
    """Read on: rows with one token together, those with several one after another.

    In the call of one token a row, rows at rest write a column behind their last, which is nobody's; those with several
    read their first, and read it again with the others.

    Returns:
        float32 ``[B, S, V]`` or ``[B, 1, V]``; zeros where a row has no token.

    Raises:
        InputError: a row would be longer than it can be.
    """
    counts = feeds.new_tokens
    single, free = counts == 1, feeds.tokens_before + least_width <= (cache.capacity or np.inf)
    together = bool(single.sum() > 1 and free.all())
    found: dict[int, Logits] = {}
    cache.make_room(int(max(feeds.lengths.max(), feeds.tokens_before.max() + 1 if together else 0)))
    if together:
        logits = caller.call(feeds.first_tokens())
        found = {int(row): logits[row] for row in np.flatnonzero(single)}
    for row in np.flatnonzero(counts):
        if int(row) not in found:
            found[int(row)] = caller.call(feeds.rows(slice(row, row + 1)), int(row))[0]
    return _in_one(found, feeds)


def _in_one(found: dict[int, Logits], feeds: RightPaddedFeeds) -> Logits:
    """Rows of logits in one array, padded up to the longest."""
    width, vocabulary = max(len(logits) for logits in found.values()), next(iter(found.values())).shape[-1]
    together = np.zeros((feeds.batch, width, vocabulary), np.float32)
    for row, logits in found.items():
        together[row, : len(logits)] = logits
    return together
