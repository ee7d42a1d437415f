"""A decode step's inputs on the device, from one step to the next: what ``Feeds.next_step`` does, without the host."""

from __future__ import annotations

import torch
from torch import Tensor

from glm_export.inputs.feeds import Ids
from glm_export.sessions.device.loop_step import LoopStep
from glm_export.spec.signature import ATTENTION_MASK, INPUT_IDS, POSITION_IDS, WRITE_INDICES, Signature


class MovingFeeds:
    """Inputs ``[B, 1]`` and what says where they stand, changed in place.

    Args:
        step: whose inputs they are, filled for the first step.
        signature: of a program whose cache keeps its place.
        lengths_B: tokens each row has after the first step.
        last_position: where a row that has ended stays.
    """

    def __init__(self, step: LoopStep, signature: Signature, lengths_B: Ids, last_position: int) -> None:
        self._inputs = inputs = step.inputs
        self._counts_columns = signature.counts_positions
        if ATTENTION_MASK in inputs:
            # What comes behind the last step of all is read by nobody.
            last_position = min(last_position, inputs[ATTENTION_MASK].shape[-1] - 1)
        self._last_position = last_position
        with step.device.on_stream():
            self._columns_B = torch.tensor(lengths_B - 1, device=step.device.target)
            if WRITE_INDICES in inputs:
                # How far a token's place within the written part is ahead of its column.
                self._ahead_B = inputs[POSITION_IDS][:, 1, 0] - self._columns_B

    @property
    def state(self) -> list[Tensor]:
        """All that changes."""
        return [*self._inputs.values(), self._columns_B]

    def advance(self, next_ids_B: Tensor) -> None:
        """On to the next step: one token a row."""
        inputs = self._inputs
        inputs[INPUT_IDS].copy_(next_ids_B[:, None])
        if self._counts_columns:
            # The program counts positions from a mask as wide as the cache.
            self._columns_B.add_(1).clamp_(max=self._last_position)
            inputs[ATTENTION_MASK].scatter_(1, self._columns_B[:, None], 1)
        elif WRITE_INDICES in inputs:
            # Prefix families: the place in the text stays, the place within counts on.
            self._columns_B.add_(1).clamp_(max=self._last_position)
            inputs[WRITE_INDICES].copy_(self._columns_B)
            inputs[POSITION_IDS][:, 1, 0].copy_(self._columns_B).add_(self._ahead_B)
            inputs[ATTENTION_MASK].scatter_(-1, self._columns_B[:, None, None, None], value=True)
        else:
            inputs[POSITION_IDS].add_(1).clamp_(max=self._last_position)
