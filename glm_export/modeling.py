"""The reference decoder, read top to bottom: ChatGLM2, ChatGLM3, GLM-4, GLM-Edge, GLM-4-0414.

One model; the families differ only in their :class:`GlmConfig`. Two patterns carry it, rotary embedding and
grouped attention (``graphs/patterns``): each runs as differentiable PyTorch, and traces to one ONNX node.

Shapes: B batch, S new tokens, P past tokens, T = P + S, N query heads, K key-value heads, D head size,
H hidden size, F ffn size, V vocabulary. ``C`` is heads times head size.

Sources: ``modeling_chatglm.py`` of THUDM/chatglm2-6b, chatglm3-6b and glm-4-9b-chat; ``modeling_glm.py`` and
``modeling_glm4.py`` of transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from glm_export.config import GlmConfig, Norm
from glm_export.graphs.patterns.attention import causal_mask, grouped_attention
from glm_export.graphs.patterns.rotary import rotary_embedding, rotary_tables

KeyValue = tuple[Tensor, Tensor]
"""Keys and values of one layer, ``[B, K, T, D]`` each, keys after rotation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderOutput:
    """What one call of the decoder returns.

    ``logits``: ``[B, S, V]``, or ``[B, 1, V]`` when only the last token was asked for.
    ``past_key_values``: one :data:`KeyValue` per layer. ``loss``: scalar float32, with labels only.
    """

    logits: Tensor
    past_key_values: list[KeyValue]
    loss: Tensor | None = None


def norm(config: GlmConfig) -> nn.Module:
    """RMSNorm or LayerNorm over H, computed in float32 inside PyTorch's kernels."""
    if config.norm is Norm.RMS:
        return nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps)


class Attention(nn.Module):
    """Project to packed ``q | k | v``, rotate q and k, attend, project back."""

    def __init__(self, config: GlmConfig) -> None:
        super().__init__()
        self.config = config
        self.qkv = nn.Linear(
            config.hidden_size, config.q_size + 2 * config.kv_size, bias=config.qkv_bias or config.linear_bias
        )
        self.dense = nn.Linear(config.q_size, config.hidden_size, bias=config.linear_bias)

    def forward(
        self, x_BSH: Tensor, position_ids_BS: Tensor, mask_B1ST: Tensor, tables: KeyValue, past: KeyValue
    ) -> tuple[Tensor, KeyValue]:
        """Return ``[B, S, H]`` and the layer's keys and values ``[B, K, T, D]``."""
        config = self.config
        q_BSC, k_BSC, v_BSC = self.qkv(x_BSH).split((config.q_size, config.kv_size, config.kv_size), dim=-1)
        interleaved = config.rotary.interleaved
        q_BSC = rotary_embedding(q_BSC, *tables, position_ids_BS, num_heads=config.num_heads, interleaved=interleaved)
        k_BSC = rotary_embedding(k_BSC, *tables, position_ids_BS, num_heads=config.kv_heads, interleaved=interleaved)
        output_BSC, key, value = grouped_attention(
            q_BSC, k_BSC, v_BSC, mask_B1ST, *past, num_heads=config.num_heads, kv_heads=config.kv_heads
        )
        return self.dense(output_BSC), (key, value)


class GatedMlp(nn.Module):
    """SwiGLU (arXiv:2002.05202): ``down(silu(gate) * up)``, gate and up packed in one projection ``[2 F, H]``."""

    def __init__(self, config: GlmConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.hidden_size, 2 * config.ffn_size, bias=config.linear_bias)
        self.down = nn.Linear(config.ffn_size, config.hidden_size, bias=config.linear_bias)

    def forward(self, x_BSH: Tensor) -> Tensor:
        """Return ``[B, S, H]``."""
        gate_BSF, up_BSF = self.gate_up(x_BSH).chunk(2, dim=-1)
        down: Tensor = self.down(functional.silu(gate_BSF) * up_BSF)
        return down


class Layer(nn.Module):
    """Norm, attention, residual; norm, MLP, residual.

    Native GLM-4 (0414, Z1) norms the two outputs as well (``sandwich_norms``). ``residual_from_norm`` takes the
    residual from the norm's output (ChatGLM2's ``apply_residual_connection_post_layernorm``).
    """

    def __init__(self, config: GlmConfig) -> None:
        super().__init__()
        self.residual_from_norm = config.residual_from_norm
        self.attention_norm = norm(config)
        self.attention = Attention(config)
        self.attention_output_norm = norm(config) if config.sandwich_norms else nn.Identity()
        self.mlp_norm = norm(config)
        self.mlp = GatedMlp(config)
        self.mlp_output_norm = norm(config) if config.sandwich_norms else nn.Identity()

    def forward(
        self, x_BSH: Tensor, position_ids_BS: Tensor, mask_B1ST: Tensor, tables: KeyValue, past: KeyValue
    ) -> tuple[Tensor, KeyValue]:
        """Return the layer's output ``[B, S, H]`` and its cache."""
        normed_BSH = self.attention_norm(x_BSH)
        attended_BSH, present = self.attention(normed_BSH, position_ids_BS, mask_B1ST, tables, past)
        residual_BSH = normed_BSH if self.residual_from_norm else x_BSH
        x_BSH = residual_BSH + self.attention_output_norm(attended_BSH)
        normed_BSH = self.mlp_norm(x_BSH)
        residual_BSH = normed_BSH if self.residual_from_norm else x_BSH
        return residual_BSH + self.mlp_output_norm(self.mlp(normed_BSH)), present


class Decoder(nn.Module):
    """Embedding, layers, final norm, head.

    Parameter names are this project's own and the same for every family; ``families/`` maps the official names
    onto them. Rotary tables are buffers outside the state dict: they follow from the config.
    """

    def __init__(self, config: GlmConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.final_norm = norm(config) if config.final_norm else nn.Identity()
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tied_head:
            self.head.weight = self.embedding.weight
        self.rebuild_tables(torch.get_default_dtype())

    def rebuild_tables(self, dtype: torch.dtype) -> None:
        """Compute the rotary tables again, e.g. after the model was made on the meta device."""
        cos_MR, sin_MR = rotary_tables(self.config.rotary, self.config.max_positions, dtype=dtype)
        self.register_buffer("cos", cos_MR, persistent=False)
        self.register_buffer("sin", sin_MR, persistent=False)

    def empty_cache(self, batch: int) -> list[KeyValue]:
        """Keys and values of no tokens, ``[B, K, 0, D]`` per layer."""
        weight = self.embedding.weight
        shape = (batch, self.config.kv_heads, 0, self.config.head_dim)
        return [(weight.new_empty(shape), weight.new_empty(shape)) for _ in self.layers]

    def forward(
        self,
        input_ids_BS: Tensor,
        attention_mask_BT: Tensor | None = None,
        position_ids_BS: Tensor | None = None,
        past_key_values: Sequence[KeyValue] | None = None,
        labels_BS: Tensor | None = None,
        *,
        last_logits_only: bool = False,
    ) -> DecoderOutput:
        """Decode ``S`` new tokens on top of the past.

        Args:
            input_ids_BS: int64 ``[B, S]``.
            attention_mask_BT: integer ``[B, P + S]``, 1 = real token; default all ones.
            position_ids_BS: int64 ``[B, S]``; default counts on from the past.
            past_key_values: one pair ``[B, K, P, D]`` per layer; default no past.
            labels_BS: int64 ``[B, S]``, -100 = not counted; the loss is the mean shifted cross entropy in float32.
            last_logits_only: compute logits ``[B, 1, V]`` of the last token.
        """
        batch, query_len = input_ids_BS.shape
        past = self.empty_cache(batch) if past_key_values is None else past_key_values
        past_len = past[0][0].shape[2]
        if attention_mask_BT is None:
            attention_mask_BT = input_ids_BS.new_ones(batch, past_len + query_len)
        if position_ids_BS is None:
            counted = torch.arange(past_len, past_len + query_len, device=input_ids_BS.device)
            position_ids_BS = counted.expand(batch, query_len)
        mask_B1ST = causal_mask(attention_mask_BT, query_len)
        hidden_BSH = self.embedding(input_ids_BS)
        present: list[KeyValue] = []
        for layer, layer_past in zip(self.layers, past, strict=True):
            hidden_BSH, layer_present = layer(hidden_BSH, position_ids_BS, mask_B1ST, (self.cos, self.sin), layer_past)
            present.append(layer_present)
        hidden_BSH = self.final_norm(hidden_BSH)
        if last_logits_only:
            hidden_BSH = hidden_BSH[:, -1:]
        logits_BSV = self.head(hidden_BSH)
        loss = None if labels_BS is None else shifted_cross_entropy(logits_BSV, labels_BS)
        return DecoderOutput(logits=logits_BSV, past_key_values=present, loss=loss)


def shifted_cross_entropy(logits_BSV: Tensor, labels_BS: Tensor) -> Tensor:
    """Mean cross entropy of each token given those before it, float32, labels of -100 left out."""
    return functional.cross_entropy(
        logits_BSV[:, :-1].flatten(0, 1).float(), labels_BS[:, 1:].flatten(), ignore_index=-100
    )
