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
from glm_export.inputs.feeds import Feeds, Ids, PrefixFeeds
from glm_export.inputs.padding import behind_prefix, right_padded
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

    Prefix families stand on the left always: their mask says what is padding. Where the model has a P-Tuning prefix the
    cache holds it already: its columns are the first of the mask, and padding stands behind them.

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
    if own_lengths and not config.prefix_mask:
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
    lengths = np.array([config.prefix_length + len(prompt.ids) for prompt in prompts], dtype=np.int64)
    ids = np.full((len(prompts), width), config.pad_token_id, dtype=np.int64)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt.ids)] = prompt.ids
    positions = np.broadcast_to(config.prefix_length + np.arange(width, dtype=np.int64), ids.shape)
    return RightPaddedFeeds(
        input_ids=ids,
        attention_mask=right_padded(lengths),
        position_ids=positions,
        lengths=lengths,
        prefix_length=config.prefix_length,
    )


def _prefix_feeds(prompts: Sequence[Prompt], ids: Ids, real: NDArray[np.bool_], prefix_length: int) -> PrefixFeeds:
    """Tokens of the context see each other; those from ``<sop>`` on also what was written before them."""
    batch, width = ids.shape
    causal = np.tri(width, dtype=bool)
    mask = np.zeros((batch, 1, width, width), dtype=bool)
    positions = np.zeros((batch, 2, width), dtype=np.int64)
    for index, prompt in enumerate(prompts):
        start = width - len(prompt.ids)
        sop = start + prompt.context_length
        mask[index, 0] = (causal | (np.arange(width) < sop)) & real[index] & real[index][:, None]
        positions[index, 0, start:sop] = np.arange(prompt.context_length)
        positions[index, 0, sop:] = prompt.mask_position
        positions[index, 1, sop:] = np.arange(1, width - sop + 1)
    return PrefixFeeds(
        input_ids=ids,
        # Every token sees a P-Tuning prefix.
        attention_mask=behind_prefix(mask, prefix_length),
        position_ids=positions,
        prefix_length=prefix_length,
        real=behind_prefix(real, prefix_length),
        context_lengths=np.array([prompt.context_length for prompt in prompts], dtype=np.int64),
        mask_positions=np.array([prompt.mask_position for prompt in prompts], dtype=np.int64),
    )


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
