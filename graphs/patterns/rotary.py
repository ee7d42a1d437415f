"""Rotary position embedding: the pattern every GLM since ChatGLM2 is built on, said in two forms.

Shapes: B batch, S tokens, N heads, D head size, R rotated channels (R <= D), M table rows (positions).
"""

from __future__ import annotations

import torch
from torch import Tensor

from glm_export.config import RotaryConfig


def rotary_tables(
    rotary: RotaryConfig, max_positions: int, *, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position.

    Angles are computed in float32, as the official code does, then rounded to ``dtype``.

    Returns:
        ``cos_MR``, ``sin_MR``: ``[max_positions, dim / 2]`` each.

    Source: ChatGLM2 ``modeling_chatglm.py`` ``RotaryEmbedding.forward_impl``;
        transformers ``modeling_glm.py`` ``GlmRotaryEmbedding``.
    """
    exponent = torch.arange(0, rotary.dim, 2, dtype=torch.float32) / rotary.dim
    inverse_frequency = 1.0 / (rotary.base**exponent)
    positions = torch.arange(max_positions, dtype=torch.float32) / rotary.position_scale
    angle_MR = torch.outer(positions, inverse_frequency)
    return angle_MR.cos().to(dtype), angle_MR.sin().to(dtype)


def rotary_embedding(
    x_BSC: Tensor, cos_MR: Tensor, sin_MR: Tensor, position_ids_BS: Tensor, *, num_heads: int, interleaved: bool
) -> Tensor:
    """Rotate the leading ``R = 2 * cos.shape[-1]`` channels of each head by position.

    Args:
        x_BSC: queries or keys ``[B, S, num_heads * D]``.
        cos_MR: cosines ``[M, R / 2]``, the dtype of ``x``.
        sin_MR: sines ``[M, R / 2]``.
        position_ids_BS: int64 ``[B, S]``, each below M.
        num_heads: heads packed in the last axis.
        interleaved: pairs are neighbours (GLM) instead of two halves (NeoX).

    Returns:
        ``[B, S, num_heads * D]``; channels R..D of each head are untouched.

    While exporting this is one ONNX ``RotaryEmbedding`` (opset 23); otherwise differentiable PyTorch.
    """
    if torch.compiler.is_exporting():
        return torch.onnx.ops.rotary_embedding(
            x_BSC, cos_MR, sin_MR, position_ids_BS,
            interleaved=interleaved, num_heads=num_heads, rotary_embedding_dim=2 * cos_MR.shape[-1],
        )  # fmt: skip
    return _rotate(x_BSC, cos_MR[position_ids_BS], sin_MR[position_ids_BS], num_heads, interleaved)


def _rotate(x_BSC: Tensor, cos_BSR: Tensor, sin_BSR: Tensor, num_heads: int, interleaved: bool) -> Tensor:
    rotated = 2 * cos_BSR.shape[-1]
    x_BSND = x_BSC.reshape(*x_BSC.shape[:2], num_heads, -1)
    turned, straight = x_BSND[..., :rotated], x_BSND[..., rotated:]
    cos, sin = cos_BSR.unsqueeze(2), sin_BSR.unsqueeze(2)
    if interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
    else:
        first, second = turned.chunk(2, dim=-1)
    pair = (first * cos - second * sin, second * cos + first * sin)
    turned = torch.stack(pair, dim=-1).flatten(-2) if interleaved else torch.cat(pair, dim=-1)
    return torch.cat((turned, straight), dim=-1).flatten(-2)
