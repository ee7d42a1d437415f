"""From prompts of different lengths to what a causal decoder is fed, and on to the next step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glm_export.config import GlmConfig
from glm_export.errors import InputError
from glm_export.signature import ATTENTION_MASK, INPUT_IDS, POSITION_IDS

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Feeds:
    """One call: ``input_ids`` and ``position_ids`` ``[B, S]``, ``attention_mask`` ``[B, P + S]``, all int64."""

    input_ids: Ids
    attention_mask: Ids
    position_ids: Ids

    @property
    def batch(self) -> int:
        """Rows."""
        return int(self.input_ids.shape[0])

    def named(self) -> dict[str, Ids]:
        """The three arrays under the program's input names."""
        return {INPUT_IDS: self.input_ids, ATTENTION_MASK: self.attention_mask, POSITION_IDS: self.position_ids}

    def followed_by(self, next_ids: Sequence[int], last_position: int) -> Feeds:
        """The next decode step: one new token a row, positions counting on up to ``last_position``.

        Only a row that is finished already, and waits for others, meets that limit.
        """
        column = np.asarray(next_ids, dtype=np.int64)[:, None]
        return Feeds(
            input_ids=column,
            attention_mask=np.concatenate([self.attention_mask, np.ones_like(column)], axis=1),
            position_ids=np.minimum(self.position_ids[:, -1:] + 1, last_position),
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


def prefill_feeds(prompts: Sequence[Sequence[int]], config: GlmConfig) -> Feeds:
    """Pad prompts on the left to one length; positions count each row's own tokens from 0.

    Raises:
        InputError: no prompt, an empty one, an id beyond the vocabulary, or one longer than the context.
    """
    if not prompts or not all(prompts):
        raise InputError("a prompt needs at least one token, found an empty one")
    width = max(map(len, prompts))
    if width > config.max_positions:
        raise InputError(f"the prompt has {width} tokens, the model's context {config.max_positions}; shorten it")
    strange = sorted({i for row in prompts for i in row if not 0 <= i < config.vocab_size})
    if strange:
        raise InputError(f"token ids {strange[:5]} lie outside the vocabulary of {config.vocab_size}; wrong tokenizer?")
    ids = np.full((len(prompts), width), config.pad_token_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for index, row in enumerate(prompts):
        ids[index, width - len(row) :] = row
        mask[index, width - len(row) :] = 1
    return Feeds(input_ids=ids, attention_mask=mask, position_ids=np.maximum(mask.cumsum(axis=1) - 1, 0))
