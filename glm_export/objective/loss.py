"""The loss of the pretraining objective."""

from __future__ import annotations

import torch
from torch.nn import functional


def infilling_loss(logits: torch.Tensor, target_ids: torch.Tensor, loss_mask: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy in float32 over the positions whose mask is 1; nothing is shifted.

    A position's logits predict ``target_ids`` of the same position (THUDM/GLM ``pretrain_glm.py``).

    Args:
        logits: ``[B, S, V]``.
        target_ids: int64 ``[B, S]``.
        loss_mask: ``[B, S]``, with a 1 somewhere.
    """
    losses_N = functional.cross_entropy(logits.float().flatten(0, 1), target_ids.flatten(), reduction="none")
    weights_N = loss_mask.flatten().to(losses_N.dtype)
    return (losses_N * weights_N).sum() / weights_N.sum()
