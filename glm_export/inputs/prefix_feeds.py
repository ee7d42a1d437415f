"""What decoders of prefix families are fed: told who sees whom, and two places of every token.

Shapes: B rows, S new tokens, P past columns, T columns that are spoken of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from glm_export.errors import InputError
from glm_export.inputs.feeds import LENGTHS, Feeds, Ids, prefix_length_of
from glm_export.inputs.padding import left_padded, right_padded
from glm_export.inputs.right_padded import RightPaddedFeeds, columns_of, padded_tokens
from glm_export.inputs.rows import rows_there

CONTEXT_LENGTHS, MASK_POSITIONS, LAST_COLUMNS = "context_lengths", "mask_positions", "last_columns"
"""What says where a row of a prefix family stands, besides its length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixFeeds(Feeds):
    """One call of a prefix family: ``position_ids`` ``[B, 2, S]``, ``attention_mask`` bool ``[B, 1, S, P + S]``.

    ``real`` ``[B, P + S]`` says which tokens are not padding. ``context_lengths`` and ``mask_positions`` ``[B]`` are
    those of :class:`Prompt`.
    """

    real: NDArray[np.bool_]
    context_lengths: Ids
    mask_positions: Ids

    @property
    def row_lengths(self) -> Ids:
        """The mask is of pairs, and ``real`` of tokens."""
        lengths: Ids = self.real.sum(axis=1)
        return lengths

    @property
    def tokens_before(self) -> Ids:
        """As :attr:`row_lengths`."""
        before: Ids = self.real[:, : self.columns - self.input_ids.shape[1]].sum(axis=1)
        return before

    @property
    def read_at_once(self) -> int:
        """The context, whose tokens see each other, of the row in which it ends last."""
        return int((self.columns - self.row_lengths + self.context_lengths).max(initial=0))

    def next_step(self, next_ids: Sequence[int], last_position: int) -> PrefixFeeds:
        """The next decode step: it sees every real token; the place in the text stays, the place within counts on."""
        column = np.asarray(next_ids, dtype=np.int64)[:, None]
        real = np.concatenate([self.real, np.ones_like(column, dtype=bool)], axis=1)
        # <sop>, the first token behind the context, stands at 1; a P-Tuning prefix takes no position.
        written = self.row_lengths - self.prefix_length - self.context_lengths
        places = np.stack([self.mask_positions, written + 1], axis=1)
        return PrefixFeeds(
            input_ids=column,
            attention_mask=real[:, None, None, :],
            position_ids=np.minimum(places, last_position)[:, :, None],
            prefix_length=self.prefix_length,
            real=real,
            context_lengths=self.context_lengths,
            mask_positions=self.mask_positions,
        )

    def next_tokens(self, tokens: Sequence[Sequence[int]]) -> PrefixFeeds:
        """Not there: what a prefix family's padded rows go on with is one token each.

        Raises:
            InputError: always.
        """
        raise InputError(f"{len(tokens)} rows of a prefix family are padded together, and go on by a token each")

    def rows(self, chosen: slice) -> PrefixFeeds:
        """The same call for some rows."""
        return PrefixFeeds(
            input_ids=self.input_ids[chosen],
            attention_mask=self.attention_mask[chosen],
            position_ids=self.position_ids[chosen],
            prefix_length=self.prefix_length,
            real=self.real[chosen],
            context_lengths=self.context_lengths[chosen],
            mask_positions=self.mask_positions[chosen],
        )

    def _piece(self, start: int, end: int) -> PrefixFeeds:
        before = self.columns - self.input_ids.shape[1]
        return PrefixFeeds(
            input_ids=self.input_ids[:, start:end],
            attention_mask=self.attention_mask[:, :, start:end, : before + end],
            position_ids=self.position_ids[:, :, start:end],
            prefix_length=self.prefix_length,
            real=self.real[:, : before + end],
            context_lengths=self.context_lengths,
            mask_positions=self.mask_positions,
        )

    def truncate(self, row: int, length: int) -> Self:
        """As :meth:`Feeds.truncate`; the context saw itself whole, so it stays whole.

        Raises:
            InputError: the row has fewer tokens, or its context more.
        """
        _require_whole_context(self, self.context_lengths, row, length)
        return Feeds.truncate(self, row, length)

    def _standings(self) -> dict[str, Ids]:
        numbers = {CONTEXT_LENGTHS: self.context_lengths, MASK_POSITIONS: self.mask_positions}
        return Feeds._standings(self) | numbers

    @classmethod
    def _standing(cls, standings: dict[str, Ids]) -> Self:
        begun = prefix_length_of(standings)
        real = left_padded(standings[LENGTHS], begun)
        rows, columns = real.shape
        return cls(
            input_ids=np.zeros((rows, 0), np.int64),
            attention_mask=np.zeros((rows, 1, 0, columns), bool),
            position_ids=np.zeros((rows, 2, 0), np.int64),
            prefix_length=begun,
            real=real,
            context_lengths=standings[CONTEXT_LENGTHS],
            mask_positions=standings[MASK_POSITIONS],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RightPaddedPrefixFeeds(RightPaddedFeeds):
    """One call of a prefix family whose rows have lengths of their own: padding stands on the right.

    ``position_ids`` ``[B, 2, S]``, ``attention_mask`` bool ``[B, 1, S, T]`` over the columns in use, padding included.
    ``first_columns`` ``[B]``: where in the cache each row's tokens of this call begin. ``context_lengths`` and
    ``mask_positions`` ``[B]`` are those of :class:`Prompt`. ``last_columns`` ``[B]``: of the last token that has a
    position; there a row waits that has ended before others.
    """

    first_columns: Ids
    context_lengths: Ids
    mask_positions: Ids
    last_columns: Ids

    @property
    def write_indices(self) -> Ids:
        """As they are given."""
        return self.first_columns

    @property
    def read_at_once(self) -> int:
        """What is left of the longest context, whose tokens see each other."""
        return int((self.prefix_length + self.context_lengths - self.write_indices).max(initial=0))

    def next_step(self, next_ids: Sequence[int], last_position: int) -> RightPaddedPrefixFeeds:
        """The next decode step, up to the column ``last_position``; what it sees is all its row has.

        The place in the text stays, the place within counts on.
        """
        columns = np.minimum(self.lengths, np.minimum(self.last_columns, last_position))
        # <sop>, the first token behind the context, stands at 1; a P-Tuning prefix takes no position.
        written = columns - self.prefix_length - self.context_lengths
        return replace(
            self,
            input_ids=np.asarray(next_ids, dtype=np.int64)[:, None],
            attention_mask=right_padded(columns + 1).astype(bool)[:, None, None, :],
            position_ids=np.stack([self.mask_positions, written + 1], axis=1)[:, :, None],
            lengths=columns + 1,
            first_columns=columns,
        )

    def next_tokens(self, tokens: Sequence[Sequence[int]]) -> RightPaddedPrefixFeeds:
        """As :meth:`RightPaddedFeeds.next_tokens`: written tokens, behind contexts that are read. Raises likewise."""
        ids, counts = padded_tokens(tokens, self.batch)
        lengths, steps = self.lengths + counts, np.arange(ids.shape[1])
        own_BS = self.lengths[:, None] + steps
        real_BS1 = (steps < counts[:, None])[:, :, None]
        columns = np.arange(columns_of(self.lengths, len(steps), lengths))
        within_BS = own_BS - (self.prefix_length + self.context_lengths)[:, None] + 1
        places = np.stack([np.broadcast_to(self.mask_positions[:, None], ids.shape), within_BS], axis=1)
        return replace(
            self,
            input_ids=ids,
            attention_mask=((columns <= own_BS[:, :, None]) & real_BS1)[:, None],
            position_ids=np.where(real_BS1[:, None, :, 0], places, 0),
            lengths=lengths,
            first_columns=self.lengths,
        )

    def first_tokens(self) -> RightPaddedPrefixFeeds:
        """As :meth:`RightPaddedFeeds.first_tokens`."""
        first = self.tokens_before
        return replace(
            self,
            input_ids=self.input_ids[:, :1],
            attention_mask=self.attention_mask[:, :, :1, : int(first.max()) + 1],
            position_ids=self.position_ids[:, :, :1],
            lengths=first + 1,
            first_columns=first,
        )

    def rows(self, chosen: slice) -> RightPaddedPrefixFeeds:
        """The same call for some rows, no wider than the longest of them."""
        lengths, first = self.lengths[chosen], self.write_indices[chosen]
        width = max(1, int((lengths - first).max()))
        return RightPaddedPrefixFeeds(
            input_ids=self.input_ids[chosen, :width],
            attention_mask=self.attention_mask[chosen, :, :width, : columns_of(first, width, lengths)],
            position_ids=self.position_ids[chosen, :, :width],
            prefix_length=self.prefix_length,
            lengths=lengths,
            first_columns=first,
            context_lengths=self.context_lengths[chosen],
            mask_positions=self.mask_positions[chosen],
            last_columns=self.last_columns[chosen],
        )

    def widened(self, width: int) -> RightPaddedPrefixFeeds:
        """The same call with padding up to a width; nobody sees it, and it is written over."""
        more = width - self.input_ids.shape[1]
        if more <= 0:
            return self
        columns = columns_of(self.write_indices, width, self.lengths)
        wider = ((0, 0), (0, 0), (0, more), (0, columns - self.columns))
        return replace(
            self,
            input_ids=np.pad(self.input_ids, ((0, 0), (0, more))),
            attention_mask=np.pad(self.attention_mask, wider),
            position_ids=np.pad(self.position_ids, ((0, 0), (0, 0), (0, more))),
        )

    def _piece(self, start: int, end: int) -> RightPaddedPrefixFeeds:
        lengths, first = np.minimum(self.lengths, self.write_indices + end), self.write_indices + start
        columns = columns_of(first, end - start, lengths)
        return replace(
            self,
            input_ids=self.input_ids[:, start:end],
            attention_mask=self.attention_mask[:, :, start:end, :columns],
            position_ids=self.position_ids[:, :, start:end],
            lengths=lengths,
            first_columns=first,
        )

    def truncate(self, row: int, length: int) -> Self:
        """As :meth:`PrefixFeeds.truncate`. Raises likewise."""
        _require_whole_context(self, self.context_lengths, row, length)
        return Feeds.truncate(self, row, length)

    def _standings(self) -> dict[str, Ids]:
        return Feeds._standings(self) | {
            CONTEXT_LENGTHS: self.context_lengths,
            MASK_POSITIONS: self.mask_positions,
            LAST_COLUMNS: self.last_columns,
        }

    @classmethod
    def _standing(cls, standings: dict[str, Ids]) -> Self:
        lengths = standings[LENGTHS]
        return cls(
            input_ids=np.zeros((len(lengths), 0), np.int64),
            attention_mask=np.zeros((len(lengths), 1, 0, int(lengths.max(initial=0))), bool),
            position_ids=np.zeros((len(lengths), 2, 0), np.int64),
            prefix_length=prefix_length_of(standings),
            lengths=lengths,
            first_columns=lengths,
            context_lengths=standings[CONTEXT_LENGTHS],
            mask_positions=standings[MASK_POSITIONS],
            last_columns=standings[LAST_COLUMNS],
        )


def _require_whole_context(feeds: Feeds, context_lengths: Ids, row: int, length: int) -> None:
    """The context saw itself whole, so it stays whole.

    Raises:
        InputError: it would be cut, or there is no such row.
    """
    (row,) = rows_there(feeds.batch, [row])
    context = int(context_lengths[row])
    if length < feeds.prefix_length + context:
        raise InputError(f"row {row} has a context of {context} tokens, and cannot be cut back to {length}")
