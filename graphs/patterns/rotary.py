"""Rotary position embedding: the pattern every GLM since ChatGLM2 is built on, said in two forms.

Shapes: B batch, S tokens, N heads, D head size, R rotated channels (R <= D), M table rows (positions).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from glm_export.spec.config import RotaryConfig, YarnScaling


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
    # theta_i = base ** (-2 i / dim), arXiv:2104.09864, section 3.2.2.
    exponent = torch.arange(0, rotary.dim, 2, dtype=torch.float32) / rotary.dim
    inverse_frequency = 1.0 / (rotary.base**exponent)
    if rotary.float16_frequencies:
        inverse_frequency = inverse_frequency.half().float()
    if rotary.yarn is not None:
        inverse_frequency = _stretched(inverse_frequency, rotary, rotary.yarn)
    positions = torch.arange(max_positions, dtype=torch.float32) / rotary.position_scale
    angle_MR = torch.outer(positions, inverse_frequency)
    # YaRN scales q and k by the square root of the temperature, and so their products by it (section 3.4).
    factor = rotary.yarn.attention_factor if rotary.yarn is not None else 1.0
    return (angle_MR.cos() * factor).to(dtype), (angle_MR.sin() * factor).to(dtype)


def _stretched(inverse_frequency: Tensor, rotary: RotaryConfig, yarn: YarnScaling) -> Tensor:
    """YaRN's frequencies, ``[dim / 2]``: "NTK by parts", arXiv:2309.00071, section 3.2.

    Source: ``_compute_yarn_parameters`` of transformers ``modeling_rope_utils.py``.
    """

    def pair_of(turns: float) -> float:
        """Which pair turns this often over the original context."""
        return rotary.dim * math.log(yarn.original_positions / (turns * 2 * math.pi)) / (2 * math.log(rotary.base))

    low, high = pair_of(yarn.beta_fast), pair_of(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary.dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(rotary.dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return inverse_frequency / yarn.factor * ramp + inverse_frequency * (1 - ramp)


@dataclass(frozen=True, slots=True)
class Rotation:
    """Where to find each token's angles.

    ``cos`` and ``sin`` are tables ``[M, R / 2]`` read at ``position_ids`` ``[B, S]``; or, with ``position_ids`` None,
    the angles themselves, ``[B, S, R / 2]``.
    """

    cos: Tensor
    sin: Tensor
    position_ids: Tensor | None

    @property
    def rotated(self) -> int:
        """R: channels of each head that are rotated."""
        return 2 * self.cos.shape[-1]

    def angles(self) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``[B, S, R / 2]``."""
        if self.position_ids is None:
            return self.cos, self.sin
        return self.cos[self.position_ids], self.sin[self.position_ids]


def rotation(cos_MR: Tensor, sin_MR: Tensor, position_ids: Tensor) -> Rotation:
    """The rotation of tokens with one position (``[B, S]``) or two (``[B, 2, S]``).

    With two, the angles of both stand side by side: pair ``i`` of a head turns by the first position for
    ``i < R / 4`` and by the second above. ChatGLM-6B's weights are laid out for that
    (:class:`glm_export.spec.weight_map.HeadwiseQkv`), and its 2D rotary embedding is then one operator for q and one
    for k, as in every other family.
    """
    if position_ids.dim() == 2:
        return Rotation(cos_MR, sin_MR, position_ids)
    first_BS, second_BS = position_ids[:, 0], position_ids[:, 1]
    cos_BSR, sin_BSR = (
        torch.cat((functional.embedding(first_BS, table), functional.embedding(second_BS, table)), dim=-1)
        for table in (cos_MR, sin_MR)
    )
    return Rotation(cos_BSR, sin_BSR, None)


def rotary_embedding(x_BSC: Tensor, rotary: Rotation, *, num_heads: int, interleaved: bool) -> Tensor:
    """Rotate the leading R channels of each head by position.

    Args:
        x_BSC: queries or keys ``[B, S, num_heads * D]``.
        rotary: angles, the dtype of ``x``; positions below M.
        num_heads: heads packed in the last axis.
        interleaved: pairs are neighbours (GLM) instead of two halves (NeoX).

    Returns:
        ``[B, S, num_heads * D]``; channels R..D of each head are untouched.

    While exporting this is one ONNX ``RotaryEmbedding`` (opset 23); otherwise differentiable PyTorch.
    """
    if torch.compiler.is_exporting():
        return torch.onnx.ops.rotary_embedding(
            x_BSC,
            rotary.cos,
            rotary.sin,
            rotary.position_ids,
            interleaved=interleaved,
            num_heads=num_heads,
            rotary_embedding_dim=rotary.rotated,
        )
    cos_BSR, sin_BSR = rotary.angles()
    cos, sin = cos_BSR.unsqueeze(2), sin_BSR.unsqueeze(2)
    x_BSND = x_BSC.reshape(*x_BSC.shape[:2], num_heads, -1)
    rotated, straight = x_BSND[..., : rotary.rotated], x_BSND[..., rotary.rotated :]
    if interleaved:
        first, second = rotated[..., 0::2], rotated[..., 1::2]
    else:
        first, second = rotated.chunk(2, dim=-1)
    # (x0 + i x1) e^(i angle) for each pair, arXiv:2104.09864, section 3.4.2. Which channels are a pair is the family's
    # choice, and the commonest error of exporters: both choices run, one speaks nonsense.
    pair = (first * cos - second * sin, second * cos + first * sin)
    rotated = torch.stack(pair, dim=-1).flatten(-2) if interleaved else torch.cat(pair, dim=-1)
    return torch.cat((rotated, straight), dim=-1).flatten(-2)
