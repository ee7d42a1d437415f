"""From prompts of different lengths to what a decoder is fed, and on to the next step.

With a growing cache rows are padded on the left together, and positions are given for every token; with a cache that
each row fills on its own they are padded on the right. Either way padding never changes an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm_export.errors import InputError
from glm_export.spec.config import GlmConfig
from glm_export.spec.signature import ATTENTION_MASK, INPUT_IDS, LAST_TOKEN_IDS, POSITION_IDS

Ids = NDArray[np.int64]
Mask = NDArray[Any]
"""Integer ``[B, T]`` for causal families, bool ``[B, 1, S, T]`` for prefix families."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """Token ids, and for prefix families where the text ends and which place is written for.

    ``context_length``: tokens before ``<sop>``, which see each other. ``mask_position``: index of the mask token whose
    place in the text every written token takes.
    """

    ids: tuple[int, ...]
    context_length: int = 0
    mask_position: int = 0

    def remaining_tokens(self, config: GlmConfig) -> int:
        """How many tokens can be written until the position table ends."""
        if config.prefix_mask:
            # <sop> is the first of the written part, at 1.
            return config.max_positions - 1 - (len(self.ids) - self.context_length)
        return config.max_positions - len(self.ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Feeds:
    """One call of a causal family: ``input_ids`` and ``position_ids`` ``[B, S]``, ``attention_mask`` ``[B, P + S]``."""

    input_ids: Ids
    attention_mask: Mask
    position_ids: Ids

    @property
    def batch(self) -> int:
        """Rows."""
        return int(self.input_ids.shape[0])

    @property
    def columns(self) -> int:
        """Columns of the cache in use after this call."""
        return int(self.attention_mask.shape[-1])

    def named(self) -> dict[str, NDArray[Any]]:
        """The arrays under the names programs give their inputs."""
        return {INPUT_IDS: self.input_ids, ATTENTION_MASK: self.attention_mask, POSITION_IDS: self.position_ids}

    @property
    def last_token_ids(self) -> Ids:
        """Where in this call each row's last real token stands, ``[B]``."""
        return np.full(self.batch, self.input_ids.shape[1] - 1, dtype=np.int64)

    def last_logits(self, logits: NDArray[Any]) -> NDArray[Any]:
        """The logits that follow each row, ``[B, V]``, of ``[B, S, V]`` or ``[B, 1, V]``."""
        if logits.shape[1] == 1:
            return logits[:, 0]
        rows: NDArray[Any] = logits[np.arange(self.batch), self.last_token_ids]
        return rows

    def next_step(self, next_ids: Sequence[int], last_position: int) -> Feeds:
        """The next decode step: one new token a row, positions counting on up to ``last_position``.

        Only a row that is finished already, and waits for others, meets that limit.
        """
        column = np.asarray(next_ids, dtype=np.int64)[:, None]
        return Feeds(
            input_ids=column,
            attention_mask=np.concatenate([self.attention_mask, np.ones_like(column)], axis=1),
            position_ids=np.minimum(self.position_ids[:, -1:] + 1, last_position),
        )

    def rows(self, chosen: slice) -> Feeds:
        """The same call for some rows."""
        return Feeds(
            input_ids=self.input_ids[chosen],
            attention_mask=self.attention_mask[chosen],
            position_ids=self.position_ids[chosen],
        )

    def chunks(self, size: int) -> list[Feeds]:
        """The same prefill in pieces of at most ``size`` tokens."""
        width = self.input_ids.shape[1]
        seen = self.attention_mask.shape[1] - width
        return [
            Feeds(
                input_ids=self.input_ids[:, start : start + size],
                attention_mask=self.attention_mask[:, : seen + min(start + size, width)],
                position_ids=self.position_ids[:, start : start + size],
            )
            for start in range(0, width, size)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class RightPaddedFeeds(Feeds):
    """One call of a causal family whose rows have lengths of their own: padding stands on the right.

    ``lengths`` ``[B]`` counts each row's real tokens, those of this call included. A token's position is its column in
    the cache; ``attention_mask`` is ``[B, longest row]``.
    """

    lengths: Ids

    def named(self) -> dict[str, NDArray[Any]]:
        """As :meth:`Feeds.named`, and which row of logits is wanted."""
        # Not super(): slots make the class anew, and the one super() knows is gone.
        return Feeds.named(self) | {LAST_TOKEN_IDS: self.last_token_ids}

    @property
    def columns(self) -> int:
        """Padding takes columns as well: those of the longest row, written and then written over."""
        return int(self.position_ids.max()) + 1

    @property
    def last_token_ids(self) -> Ids:
        """Where in this call each row's last real token stands, ``[B]``; 0 for a row that had none left."""
        width = self.input_ids.shape[1]
        last: Ids = np.clip(self.lengths - self.position_ids[:, 0], 1, width) - 1
        return last

    def next_step(self, next_ids: Sequence[int], last_position: int) -> RightPaddedFeeds:
        """The next decode step: each row's token goes behind its last one."""
        column = np.asarray(next_ids, dtype=np.int64)[:, None]
        positions = np.minimum(self.lengths, last_position)[:, None]
        return RightPaddedFeeds(
            input_ids=column,
            attention_mask=_row_mask(positions[:, 0] + 1),
            position_ids=positions,
            lengths=positions[:, 0] + 1,
        )

    def rows(self, chosen: slice) -> RightPaddedFeeds:
        """The same call for some rows, no wider than the longest of them."""
        lengths, positions = self.lengths[chosen], self.position_ids[chosen]
        width = max(1, int((lengths - positions[:, 0]).max()))
        return RightPaddedFeeds(
            input_ids=self.input_ids[chosen, :width],
            attention_mask=_row_mask(lengths),
            position_ids=positions[:, :width],
            lengths=lengths,
        )

    def chunks(self, size: int) -> list[Feeds]:
        """The same prefill in pieces of at most ``size`` tokens."""
        width = self.input_ids.shape[1]
        edges = [*range(0, width, size), width]
        return [
            RightPaddedFeeds(
                input_ids=self.input_ids[:, start:end],
                attention_mask=_row_mask(np.minimum(self.lengths, end)),
                position_ids=self.position_ids[:, start:end],
                lengths=np.minimum(self.lengths, end),
            )
            for start, end in pairwise(edges)
        ]


def _row_mask(lengths: Ids) -> Ids:
    """Integer ``[B, longest]``, 1 up to each row's length."""
    return (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixFeeds(Feeds):
    """One call of a prefix family: ``position_ids`` ``[B, 2, S]``, ``attention_mask`` bool ``[B, 1, S, P + S]``.

    ``real`` ``[B, P + S]`` says which tokens are not padding; ``context_end`` how many columns must be read at once,
    because their tokens see each other.
    """

    real: NDArray[np.bool_]
    context_end: int

    def next_step(self, next_ids: Sequence[int], last_position: int) -> PrefixFeeds:
        """The next decode step: it sees every real token; the place in the text stays, the place within counts on."""
        column = np.asarray(next_ids, dtype=np.int64)[:, None]
        real = np.concatenate([self.real, np.ones_like(column, dtype=bool)], axis=1)
        step = np.array([[0], [1]])
        return PrefixFeeds(
            input_ids=column,
            attention_mask=real[:, None, None, :],
            position_ids=np.minimum(self.position_ids[:, :, -1:] + step, last_position),
            real=real,
            context_end=self.context_end,
        )

    def rows(self, chosen: slice) -> PrefixFeeds:
        """The same call for some rows."""
        return PrefixFeeds(
            input_ids=self.input_ids[chosen],
            attention_mask=self.attention_mask[chosen],
            position_ids=self.position_ids[chosen],
            real=self.real[chosen],
            context_end=self.context_end,
        )

    def chunks(self, size: int) -> list[Feeds]:
        """The same prefill in pieces of at most ``size`` tokens, the context whole in the first."""
        width = self.input_ids.shape[1]
        first = min(width, max(size, self.context_end))
        edges = [0, *range(first, width, size), width]
        return [
            PrefixFeeds(
                input_ids=self.input_ids[:, start:end],
                attention_mask=self.attention_mask[:, :, start:end, :end],
                position_ids=self.position_ids[:, :, start:end],
                real=self.real[:, :end],
                context_end=self.context_end,
            )
            for start, end in pairwise(edges)
        ]


def prefill_feeds(prompts: Sequence[Prompt], config: GlmConfig, *, own_lengths: bool = False) -> Feeds:
    """Pad prompts to one length: on the left, or with ``own_lengths`` on the right.

    Prefix families stand on the left always: their mask says what is padding.

    Raises:
        InputError: no prompt, an empty one, an id beyond the vocabulary, or one longer than the position table.
    """
    if not prompts or not all(prompt.ids for prompt in prompts):
        raise InputError("a prompt needs at least one token, found an empty one")
    for prompt in prompts:
        if prompt.remaining_tokens(config) < 0 or prompt.context_length > config.max_positions:
            raise InputError(
                f"the prompt has {len(prompt.ids)} tokens, the model's context {config.max_positions}; shorten it"
            )
    strange = sorted({i for prompt in prompts for i in prompt.ids if not 0 <= i < config.vocab_size})
    if strange:
        raise InputError(f"token ids {strange[:5]} lie outside the vocabulary of {config.vocab_size}; wrong tokenizer?")
    width = max(len(prompt.ids) for prompt in prompts)
    if own_lengths and not config.prefix_mask:
        return _row_feeds(prompts, width, config.pad_token_id)
    ids = np.full((len(prompts), width), config.pad_token_id, dtype=np.int64)
    real = np.zeros((len(prompts), width), dtype=bool)
    for index, prompt in enumerate(prompts):
        ids[index, width - len(prompt.ids) :] = prompt.ids
        real[index, width - len(prompt.ids) :] = True
    if config.prefix_mask:
        return _prefix_feeds(prompts, ids, real)
    mask = real.astype(np.int64)
    return Feeds(input_ids=ids, attention_mask=mask, position_ids=np.maximum(mask.cumsum(axis=1) - 1, 0))


def _row_feeds(prompts: Sequence[Prompt], width: int, pad_token_id: int) -> RightPaddedFeeds:
    lengths = np.array([len(prompt.ids) for prompt in prompts], dtype=np.int64)
    ids = np.full((len(prompts), width), pad_token_id, dtype=np.int64)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt.ids)] = prompt.ids
    positions = np.broadcast_to(np.arange(width, dtype=np.int64), ids.shape)
    return RightPaddedFeeds(input_ids=ids, attention_mask=_row_mask(lengths), position_ids=positions, lengths=lengths)


def _prefix_feeds(prompts: Sequence[Prompt], ids: Ids, real: NDArray[np.bool_]) -> PrefixFeeds:
    """Tokens of the context see each other; those from ``<sop>`` on also what was written before them."""
    batch, width = ids.shape
    causal = np.tri(width, dtype=bool)
    mask = np.zeros((batch, 1, width, width), dtype=bool)
    positions = np.zeros((batch, 2, width), dtype=np.int64)
    context_end = 0
    for index, prompt in enumerate(prompts):
        start = width - len(prompt.ids)
        sop = start + prompt.context_length
        mask[index, 0] = (causal | (np.arange(width) < sop)) & real[index] & real[index][:, None]
        positions[index, 0, start:sop] = np.arange(prompt.context_length)
        positions[index, 0, sop:] = prompt.mask_position
        positions[index, 1, sop:] = np.arange(1, width - sop + 1)
        context_end = max(context_end, sop)
    return PrefixFeeds(input_ids=ids, attention_mask=mask, position_ids=positions, real=real, context_end=context_end)
