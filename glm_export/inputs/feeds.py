"""What a decoder is fed, call after call. Between two calls rows may join, leave, be copied and be cut back.

The operations on rows are those of ``sessions/kv_cache.py``, on the caller's side of a call.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from glm_export.errors import InputError, listed
from glm_export.inputs.padding import left_padded
from glm_export.inputs.rows import rows_staying, rows_there
from glm_export.spec.signature import ATTENTION_MASK, INPUT_IDS, POSITION_IDS

Ids = NDArray[np.int64]
Mask = NDArray[Any]
"""Integer ``[B, T]`` for causal families, bool ``[B, 1, S, T]`` for prefix families."""
LENGTHS, PREFIX_LENGTHS = "lengths", "prefix_lengths"
"""What says where a row stands, whatever its padding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Feeds:
    """One call of a causal family: ``input_ids`` and ``position_ids`` ``[B, S]``, ``attention_mask`` ``[B, P + S]``.

    S may be 0 where rows joined, left, were copied or cut back: then it says what stands in the cache, and
    :meth:`next_step` goes on from there.

    ``prefix_length``: columns of a P-Tuning prefix, with which every row begins; lengths and positions count them, and
    padding on the left stands behind them.
    """

    input_ids: Ids
    attention_mask: Mask
    position_ids: Ids
    prefix_length: int = 0

    @property
    def batch(self) -> int:
        """Rows."""
        return int(self.input_ids.shape[0])

    @property
    def columns(self) -> int:
        """Columns of the cache in use after this call."""
        return int(self.attention_mask.shape[-1])

    @property
    def row_lengths(self) -> Ids:
        """Tokens each row has in the cache after this call, ``[B]``."""
        lengths: Ids = self.attention_mask.sum(axis=1)
        return lengths

    @property
    def tokens_before(self) -> Ids:
        """Tokens each row must have in the cache before this call, ``[B]``."""
        before: Ids = self.attention_mask[:, : self.columns - self.input_ids.shape[1]].sum(axis=1)
        return before

    def named(self) -> dict[str, NDArray[Any]]:
        """The arrays under the names programs give their inputs."""
        return {INPUT_IDS: self.input_ids, ATTENTION_MASK: self.attention_mask, POSITION_IDS: self.position_ids}

    @property
    def last_token_ids(self) -> Ids:
        """Where in this call each row's last real token stands, ``[B]``."""
        return np.full(self.batch, self.input_ids.shape[1] - 1, dtype=np.int64)

    def last_logits(self, logits: NDArray[Any]) -> NDArray[Any]:
        """The logits that follow each row, ``[B, V]``, of ``[B, K, V]``: those of its last K tokens at most."""
        if logits.shape[1] == 1:
            return logits[:, 0]
        # A row with fewer tokens than K has its first in column 0, as one with more has the first that is told.
        rows: NDArray[Any] = logits[np.arange(self.batch), np.minimum(self.last_token_ids, logits.shape[1] - 1)]
        return rows

    def next_step(self, next_ids: Sequence[int], last_position: int) -> Feeds:
        """The next decode step: one new token a row, positions counting on up to ``last_position``.

        Only a row that is finished already, and waits for others, meets that limit.
        """
        column = np.asarray(next_ids, dtype=np.int64)[:, None]
        return Feeds(
            input_ids=column,
            attention_mask=np.concatenate([self.attention_mask, np.ones_like(column)], axis=1),
            position_ids=np.minimum(self.row_lengths, last_position)[:, None],
            prefix_length=self.prefix_length,
        )

    def next_tokens(self, tokens: Sequence[Sequence[int]]) -> Feeds:
        """A call in which all rows go on with as many tokens as are given for each.

        Raises:
            InputError: rows that are padded together have different numbers of them, or none.
        """
        counts = {len(row) for row in tokens}
        if len(tokens) != self.batch or len(counts) != 1 or 0 in counts:
            raise InputError(
                f"each of {self.batch} rows should go on with as many tokens; found {listed(sorted(counts))}"
            )
        ids = np.asarray(tokens, np.int64)
        return Feeds(
            input_ids=ids,
            attention_mask=np.concatenate([self.attention_mask, np.ones_like(ids)], axis=1),
            position_ids=self.row_lengths[:, None] + np.arange(ids.shape[1]),
            prefix_length=self.prefix_length,
        )

    def rows(self, chosen: slice) -> Feeds:
        """The same call for some rows."""
        return Feeds(
            input_ids=self.input_ids[chosen],
            attention_mask=self.attention_mask[chosen],
            position_ids=self.position_ids[chosen],
            prefix_length=self.prefix_length,
        )

    def chunks(self, size: int) -> list[Feeds]:
        """The same prefill in pieces of at most ``size`` tokens."""
        width = self.input_ids.shape[1]
        first = min(width, max(size, self.read_at_once))
        return [self._piece(start, end) for start, end in pairwise([0, *range(first, width, size), width])]

    def after(self, tokens: int) -> Feeds:
        """What is left of a prefill whose first columns stand in the cache already.

        Raises:
            InputError: nothing is left, or what must be read at once would be cut.
        """
        width = self.input_ids.shape[1]
        if not self.read_at_once <= tokens < width:
            raise InputError(
                f"{tokens} of {width} tokens are given; the first {self.read_at_once} see each other and must all be, "
                "and one must be left to read"
            )
        return self._piece(tokens, width)

    @property
    def read_at_once(self) -> int:
        """Columns that cannot be read in pieces."""
        return 0

    def _piece(self, start: int, end: int) -> Feeds:
        before = self.columns - self.input_ids.shape[1]
        return Feeds(
            input_ids=self.input_ids[:, start:end],
            attention_mask=self.attention_mask[:, : before + end],
            position_ids=self.position_ids[:, start:end],
            prefix_length=self.prefix_length,
        )

    def select(self, rows: Sequence[int]) -> Self:
        """What stands in a cache that holds these rows, in this order; one may come twice."""
        chosen = rows_there(self.batch, rows)
        return self._standing({name: numbers[chosen] for name, numbers in self._standings().items()})

    def leave(self, rows: Iterable[int]) -> Self:
        """As :meth:`select`, without these rows."""
        return self.select(rows_staying(self.batch, rows))

    def copy_rows(self, rows: Sequence[int]) -> Self:
        """As :meth:`select`, with these rows a second time, behind all others."""
        return self.select([*range(self.batch), *rows])

    def join(self, other: Self) -> Self:
        """What stands in a cache to which the rows of another call have come, behind its own."""
        ours, theirs = self._standings(), other._standings()
        return self._standing({name: np.concatenate([ours[name], theirs[name]]) for name in ours})

    def truncate(self, row: int, length: int) -> Self:
        """What stands in a cache of which a row has lost all but its first ``length`` tokens.

        Raises:
            InputError: it has fewer, or a prefix that would be cut.
        """
        (row,) = rows_there(self.batch, [row])
        lengths = self.row_lengths.copy()
        if not self.prefix_length <= length <= lengths[row]:
            raise InputError(f"row {row} has {lengths[row]} tokens and cannot be cut back to {length}")
        lengths[row] = length
        return self._standing(self._standings() | {LENGTHS: lengths})

    def _standings(self) -> dict[str, Ids]:
        """What says where each row stands, a number a row, by name."""
        return {LENGTHS: self.row_lengths, PREFIX_LENGTHS: np.full(self.batch, self.prefix_length, np.int64)}

    @classmethod
    def _standing(cls, standings: dict[str, Ids]) -> Self:
        """A call without tokens, over rows that stand so."""
        prefix_length = prefix_length_of(standings)
        mask = left_padded(standings[LENGTHS], prefix_length).astype(np.int64)
        nothing = np.zeros((len(mask), 0), np.int64)
        return cls(input_ids=nothing, attention_mask=mask, position_ids=nothing, prefix_length=prefix_length)


def prefix_length_of(standings: dict[str, Ids]) -> int:
    """One for all rows; a batch without rows has none until some join."""
    return int(standings[PREFIX_LENGTHS].max(initial=0))
