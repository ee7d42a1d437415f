"""A call of a causal family whose rows have lengths of their own: one may go on by many tokens, one by none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from glm_export.errors import InputError
from glm_export.inputs.feeds import LENGTHS, PREFIX_LENGTHS, Feeds, Ids, prefix_length_of
from glm_export.inputs.padding import right_padded
from glm_export.spec.signature import LAST_TOKEN_IDS, QUERY_LENGTHS, WRITE_INDICES


@dataclass(frozen=True, slots=True, kw_only=True)
class RightPaddedFeeds(Feeds):
    """One call of a causal family whose rows have lengths of their own: padding stands on the right.

    ``lengths`` ``[B]`` counts each row's real tokens, those of this call included. A token's position is its column in
    the cache; ``attention_mask`` is ``[B, longest row]``.
    """

    lengths: Ids

    @property
    def row_lengths(self) -> Ids:
        """As they are given."""
        return self.lengths

    @property
    def tokens_before(self) -> Ids:
        """Those before its first column; what a row held from there on is written over, or it is at rest."""
        before: Ids = np.minimum(self.write_indices, self.lengths)
        return before

    @property
    def write_indices(self) -> Ids:
        """Column of the cache that each row's first token of this call goes to, ``[B]``; the others follow."""
        return self.position_ids[:, 0] if self.input_ids.shape[1] else self.lengths

    def named(self) -> dict[str, NDArray[Any]]:
        """As :meth:`Feeds.named`; where rows are written, which logits are wanted, how many tokens each row has."""
        # Not super(): slots make the class anew, and the one super() knows is gone.
        query_lengths: NDArray[Any] = self.new_tokens.astype(np.int32)
        told = {WRITE_INDICES: self.write_indices, LAST_TOKEN_IDS: self.last_token_ids, QUERY_LENGTHS: query_lengths}
        return Feeds.named(self) | told

    @property
    def new_tokens(self) -> Ids:
        """Of this call's columns, how many are each row's own, ``[B]``; none for a row at rest."""
        counts: Ids = np.clip(self.lengths - self.write_indices, 0, self.input_ids.shape[1])
        return counts

    def next_tokens(self, tokens: Sequence[Sequence[int]]) -> RightPaddedFeeds:
        """A call in which each row goes on with as many tokens as are given for it; with none it stays as it is.

        Raises:
            InputError: there are no tokens at all, or not a list for each row.
        """
        ids, counts = padded_tokens(tokens, self.batch)
        lengths = self.lengths + counts
        return RightPaddedFeeds(
            input_ids=ids,
            # A row that holds nothing and reads nothing has a column all the same: without one it is refused.
            attention_mask=right_padded(np.maximum(lengths, 1)),
            position_ids=self.lengths[:, None] + np.arange(ids.shape[1]),
            lengths=lengths,
            prefix_length=self.prefix_length,
        )

    def first_tokens(self) -> RightPaddedFeeds:
        """The first column of this call alone, as if every row had a token there; one at rest reads token 0."""
        lengths = self.tokens_before + 1
        return RightPaddedFeeds(
            input_ids=self.input_ids[:, :1],
            attention_mask=right_padded(lengths),
            position_ids=self.tokens_before[:, None],
            lengths=lengths,
            prefix_length=self.prefix_length,
        )

    @property
    def columns(self) -> int:
        """Padding takes columns as well: those of the longest row, written and then written over."""
        return columns_of(self.write_indices, self.input_ids.shape[1], self.lengths)

    @property
    def last_token_ids(self) -> Ids:
        """Where in this call each row's last real token stands, ``[B]``; 0 for a row that had none left."""
        width = self.input_ids.shape[1]
        last: Ids = np.clip(self.lengths - self.write_indices, 1, width) - 1
        return last

    def next_step(self, next_ids: Sequence[int], last_position: int) -> RightPaddedFeeds:
        """The next decode step: each row's token goes behind its last one."""
        column = np.asarray(next_ids, dtype=np.int64)[:, None]
        positions = np.minimum(self.lengths, last_position)[:, None]
        return RightPaddedFeeds(
            input_ids=column,
            attention_mask=right_padded(positions[:, 0] + 1),
            position_ids=positions,
            lengths=positions[:, 0] + 1,
            prefix_length=self.prefix_length,
        )

    def rows(self, chosen: slice) -> RightPaddedFeeds:
        """The same call for some rows, no wider than the longest of them."""
        lengths, positions = self.lengths[chosen], self.position_ids[chosen]
        width = max(1, int((lengths - positions[:, 0]).max()))
        return RightPaddedFeeds(
            input_ids=self.input_ids[chosen, :width],
            attention_mask=right_padded(lengths),
            position_ids=positions[:, :width],
            lengths=lengths,
            prefix_length=self.prefix_length,
        )

    def widened(self, width: int) -> RightPaddedFeeds:
        """The same call with padding up to a width; it stands behind every row, and is written over."""
        more = width - self.input_ids.shape[1]
        if more <= 0:
            return self
        behind = self.position_ids[:, -1:] + np.arange(1, more + 1)
        return replace(
            self,
            input_ids=np.pad(self.input_ids, ((0, 0), (0, more))),
            position_ids=np.concatenate([self.position_ids, behind], axis=1),
        )

    def _piece(self, start: int, end: int) -> RightPaddedFeeds:
        lengths = np.minimum(self.lengths, self.position_ids[:, 0] + end)
        return RightPaddedFeeds(
            input_ids=self.input_ids[:, start:end],
            attention_mask=right_padded(lengths),
            position_ids=self.position_ids[:, start:end],
            lengths=lengths,
            prefix_length=self.prefix_length,
        )

    @classmethod
    def holding(cls, lengths: Sequence[int], prefix_length: int = 0) -> Self:
        """What stands in a cache whose rows have so many tokens; :meth:`next_tokens` goes on from there."""
        held = np.array(lengths, np.int64)
        return cls._standing({LENGTHS: held, PREFIX_LENGTHS: np.full(len(held), prefix_length, np.int64)})

    @classmethod
    def _standing(cls, standings: dict[str, Ids]) -> Self:
        lengths = standings[LENGTHS]
        nothing = np.zeros((len(lengths), 0), np.int64)
        return cls(
            input_ids=nothing,
            attention_mask=right_padded(lengths),
            position_ids=nothing,
            lengths=lengths,
            prefix_length=prefix_length_of(standings),
        )


def columns_of(write_indices: Ids, new: int, lengths: Ids) -> int:
    """Columns of the cache in use after a call of ``new`` tokens a row, padding included."""
    return max(int(write_indices.max(initial=0)) + new, int(lengths.max(initial=0)))


def padded_tokens(tokens: Sequence[Sequence[int]], batch: int) -> tuple[Ids, Ids]:
    """Tokens ``[B, S]`` with padding behind each row's own, and how many those are, ``[B]``.

    Raises:
        InputError: there are no tokens at all, or not a list for each row.
    """
    counts = np.array([len(row) for row in tokens], np.int64)
    if len(counts) != batch or not counts.any():
        raise InputError(f"tokens are wanted for {batch} rows, at least one; found {counts.tolist()}")
    ids = np.zeros((batch, int(counts.max())), np.int64)
    for row, own in enumerate(tokens):
        ids[row, : len(own)] = own
    return ids, counts
