"""A mixture of experts: each token's few experts among many, said in two forms.

Shapes: X tokens, E experts, K experts a token, H hidden size, F width of an expert.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from glm_export.spec.config import BEST_OF_GROUP


def route(
    scores_XE: Tensor,
    choice_bias_E: Tensor,
    *,
    per_token: int,
    normalize: bool,
    scale: float,
    groups: int = 1,
    chosen_groups: int = 1,
) -> tuple[Tensor, Tensor]:
    """Choose experts and weigh them.

    Args:
        scores_XE: float32 sigmoid scores ``[X, E]``.
        choice_bias_E: float32 ``[E]``, added for the choice alone.
        per_token: K.
        normalize: make each token's weights sum to 1.
        scale: multiplies the weights.
        groups: of neighbouring experts; a group's score is that of its two best.
        chosen_groups: how many of them a token may choose from.

    Returns:
        Weights ``[X, K]`` float32 and expert numbers ``[X, K]`` int64.

    Source: ``modeling_glm4_moe.py`` of transformers, ``Glm4MoeTopkRouter``.
    """
    # The bias balances load: it decides who is chosen, not how much that counts (arXiv:2408.15664).
    choice_XE = scores_XE + choice_bias_E
    if groups > 1:
        choice_XE = choice_XE * _in_best_groups(choice_XE, groups, chosen_groups)
    experts_XK = torch.topk(choice_XE, per_token, dim=-1).indices
    weights_XK = scores_XE.gather(1, experts_XK)
    if normalize:
        # The official floor: sigmoid scores can underflow together.
        weights_XK = weights_XK / (weights_XK.sum(dim=-1, keepdim=True) + 1e-20)
    return weights_XK * scale, experts_XK


def _in_best_groups(choice_XE: Tensor, groups: int, chosen: int) -> Tensor:
    """1 for experts of the best groups, 0 for the others: those count as 0, as in transformers, not as lowest."""
    choice_XGE = choice_XE.reshape(-1, groups, choice_XE.shape[1] // groups)
    best_XG = torch.topk(choice_XGE, BEST_OF_GROUP, dim=-1).values.sum(dim=-1)
    chosen_XG = torch.topk(best_XG, chosen, dim=-1).indices
    inside_XG = torch.zeros_like(best_XG).scatter(1, chosen_XG, torch.ones_like(chosen_XG, dtype=best_XG.dtype))
    return inside_XG.unsqueeze(-1).expand_as(choice_XGE).reshape(choice_XE.shape)


def mix_experts(x_XH: Tensor, weights_XK: Tensor, experts_XK: Tensor, gate_up_EFH: Tensor, down_EHF: Tensor) -> Tensor:
    """Weighted sum of the chosen experts' SwiGLU.

    Args:
        x_XH: ``[X, H]``.
        weights_XK: ``[X, K]``.
        experts_XK: int64 ``[X, K]``.
        gate_up_EFH: ``[E, 2 F, H]``, rows of the gate first.
        down_EHF: ``[E, H, F]``.

    Returns:
        ``[X, H]``.

    While exporting every expert sees every token (two batched ``MatMul``) and the weights of those not chosen are 0:
    standard operators have no grouped product. In PyTorch each expert sees its own tokens only.
    """
    if torch.compiler.is_exporting():
        # [X, E, 1] by scattering the weights, then summed over E.
        weights_XE = torch.zeros(x_XH.shape[0], gate_up_EFH.shape[0], dtype=x_XH.dtype)
        weights_XE = weights_XE.scatter(1, experts_XK, weights_XK.to(x_XH.dtype))
        gate_EXF, up_EXF = torch.matmul(x_XH, gate_up_EFH.transpose(1, 2)).chunk(2, dim=-1)
        each_EXH = torch.matmul(functional.silu(gate_EXF) * up_EXF, down_EHF.transpose(1, 2))
        return (each_EXH * weights_XE.t().unsqueeze(-1)).sum(dim=0)
    mixed_XH = torch.zeros_like(x_XH)
    # By expert number, so that sums are added in one order and runs repeat to the bit.
    for expert in sorted(set(experts_XK.flatten().tolist())):
        rows, slots = (experts_XK == expert).nonzero(as_tuple=True)
        gate, up = functional.linear(x_XH[rows], gate_up_EFH[expert]).chunk(2, dim=-1)
        answer = functional.linear(functional.silu(gate) * up, down_EHF[expert])
        mixed_XH = mixed_XH.index_add(0, rows, answer * weights_XK[rows, slots, None].to(answer.dtype))
    return mixed_XH
