"""Prompts of different lengths padded to one call.

With a growing cache rows are padded on the left together, and positions are given for every token; with a cache that
each row fills on its own they are padded on the right. Either way padding never changes an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glm_export.errors import InputError
from glm_export.inputs.feeds import Feeds, Ids
from glm_export.inputs.padding import behind_prefix, right_padded
from glm_export.inputs.prefix_feeds import PrefixFeeds, RightPaddedPrefixFeeds
from glm_export.inputs.right_padded import RightPaddedFeeds
from glm_export.spec.config import GlmConfig


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
        return config.text_positions - len(self.ids)

    def excess_tokens(self, config: GlmConfig) -> int:
        """How many tokens are beyond the position table; 0 or less where all have a position."""
        return max(self.context_length - config.max_positions, -self.remaining_tokens(config))


def prefill_feeds(prompts: Sequence[Prompt], config: GlmConfig, *, own_lengths: bool = False) -> Feeds:
    """Pad prompts to one length: on the left, or with ``own_lengths`` on the right.

    Where the model has a P-Tuning prefix the cache holds it already: its columns are the first of the mask, and padding
    on the left stands behind them.

    Raises:
        InputError: no prompt, an empty one, an id beyond the vocabulary, or one longer than the position table.
    """
    if not prompts or not all(prompt.ids for prompt in prompts):
        raise InputError("a prompt needs at least one token, found an empty one")
    for prompt in prompts:
        excess = prompt.excess_tokens(config)
        if excess > 0:
            raise InputError(
                f"the prompt has {len(prompt.ids)} tokens, the model's context {config.text_positions}: {excess} too "
                "many; shorten it"
            )
    strange = sorted({i for prompt in prompts for i in prompt.ids if not 0 <= i < config.vocab_size})
    if strange:
        raise InputError(f"token ids {strange[:5]} lie outside the vocabulary of {config.vocab_size}; wrong tokenizer?")
    width = max(len(prompt.ids) for prompt in prompts)
    if own_lengths:
        return _row_feeds(prompts, width, config)
    ids = np.full((len(prompts), width), config.pad_token_id, dtype=np.int64)
    real = np.zeros((len(prompts), width), dtype=bool)
    for index, prompt in enumerate(prompts):
        ids[index, width - len(prompt.ids) :] = prompt.ids
        real[index, width - len(prompt.ids) :] = True
    if config.prefix_mask:
        return _prefix_feeds(prompts, ids, real, config.prefix_length)
    mask = behind_prefix(real, config.prefix_length).astype(np.int64)
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)[:, config.prefix_length :]
    return Feeds(input_ids=ids, attention_mask=mask, position_ids=positions, prefix_length=config.prefix_length)


def _row_feeds(prompts: Sequence[Prompt], width: int, config: GlmConfig) -> RightPaddedFeeds:
    begun = config.prefix_length
    lengths = np.array([begun + len(prompt.ids) for prompt in prompts], dtype=np.int64)
    ids = np.full((len(prompts), width), config.pad_token_id, dtype=np.int64)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt.ids)] = prompt.ids
    if config.prefix_mask:
        mask, places = _pairs_and_places(prompts, np.zeros(len(prompts), np.int64), width)
        context_lengths, mask_positions = _contexts(prompts)
        return RightPaddedPrefixFeeds(
            input_ids=ids,
            attention_mask=behind_prefix(mask, begun),
            position_ids=places,
            lengths=lengths,
            first_columns=np.full(len(prompts), begun, np.int64),
            prefix_length=begun,
            context_lengths=context_lengths,
            mask_positions=mask_positions,
            # <sop> is the first of the written part, at 1.
            last_columns=begun + context_lengths + config.max_positions - 2,
        )
    return RightPaddedFeeds(
        input_ids=ids,
        attention_mask=right_padded(lengths),
        position_ids=np.broadcast_to(begun + np.arange(width, dtype=np.int64), ids.shape),
        lengths=lengths,
        prefix_length=begun,
    )


def _prefix_feeds(prompts: Sequence[Prompt], ids: Ids, real: NDArray[np.bool_], prefix_length: int) -> PrefixFeeds:
    starts = np.array([ids.shape[1] - len(prompt.ids) for prompt in prompts])
    mask, positions = _pairs_and_places(prompts, starts, ids.shape[1])
    context_lengths, mask_positions = _contexts(prompts)
    return PrefixFeeds(
        input_ids=ids,
        attention_mask=behind_prefix(mask, prefix_length),
        position_ids=positions,
        prefix_length=prefix_length,
        real=behind_prefix(real, prefix_length),
        context_lengths=context_lengths,
        mask_positions=mask_positions,
    )


def _pairs_and_places(prompts: Sequence[Prompt], starts: Ids, width: int) -> tuple[NDArray[np.bool_], Ids]:
    """Who sees whom ``[B, 1, S, S]``, and two places of every token ``[B, 2, S]``; padding sees nobody and stands at 0.

    Tokens of the context see each other; those from ``<sop>`` on also what was written before them.
    """
    causal, columns = np.tri(width, dtype=bool), np.arange(width)
    mask = np.zeros((len(prompts), 1, width, width), dtype=bool)
    places = np.zeros((len(prompts), 2, width), dtype=np.int64)
    for index, (prompt, start) in enumerate(zip(prompts, starts, strict=True)):
        sop, end = start + prompt.context_length, start + len(prompt.ids)
        real = (start <= columns) & (columns < end)
        mask[index, 0] = (causal | (columns < sop)) & real & real[:, None]
        places[index, 0, start:sop] = np.arange(prompt.context_length)
        places[index, 0, sop:end] = prompt.mask_position
        places[index, 1, sop:end] = np.arange(1, end - sop + 1)
    return mask, places


def _contexts(prompts: Sequence[Prompt]) -> tuple[Ids, Ids]:
    """Lengths of the contexts and places of the masks, ``[B]`` each."""
    lengths, places = zip(*((prompt.context_length, prompt.mask_position) for prompt in prompts), strict=True)
    return np.array(lengths, np.int64), np.array(places, np.int64)


def prefix_prompt(ids: Sequence[int], sop_id: int, masks: Sequence[set[int]]) -> Prompt:
    """Find ``<sop>`` and the mask token written for.

    Args:
        ids: the context, ``<sop>``, and what was written already.
        sop_id: the token that ends the context.
        masks: sets of mask tokens, the first that occurs counts.

    Raises:
        InputError: either is missing.
    """
    if sop_id not in ids:
        raise InputError(f"the prompt has no start-of-piece token ({sop_id}); a prefix family writes after it")
    context_length = list(ids).index(sop_id)
    for kinds in masks:
        places = [place for place, token in enumerate(ids[:context_length]) if token in kinds]
        if places:
            return Prompt(ids=tuple(ids), context_length=context_length, mask_position=places[0])
    raise InputError("the prompt has no mask token to write for; put [MASK] or [gMASK] into the text")
