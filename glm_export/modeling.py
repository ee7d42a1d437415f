"""The reference decoder, read top to bottom: GLM, ChatGLM-6B, ChatGLM2, ChatGLM3, GLM-4, GLM-Edge, GLM-4.5.

One model; the families differ only in their :class:`GlmConfig`. Two patterns carry it, rotary embedding and
grouped attention (``graphs/patterns``): each runs as differentiable PyTorch, and traces to one ONNX node.

Shapes: B batch, S new tokens, P past tokens, T = P + S, N query heads, K key-value heads, D head size,
H hidden size, F ffn size, E experts, V vocabulary. ``C`` is heads times head size, ``X`` tokens of all rows together.

Sources: ``modeling_glm.py`` of THUDM/glm-10b; ``modeling_chatglm.py`` of THUDM/chatglm-6b, chatglm2-6b, chatglm3-6b and
glm-4-9b-chat; ``modeling_glm.py``, ``modeling_glm4.py`` and ``modeling_glm4_moe.py`` of transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from glm_export.graphs.patterns.attention import causal_mask, grouped_attention, prefix_mask
from glm_export.graphs.patterns.experts import mix_experts, route
from glm_export.graphs.patterns.rotary import Rotation, rotary_embedding, rotary_tables, rotation
from glm_export.spec.config import Activation, ExpertsConfig, GlmConfig, Norm

ROUTER = ".router"
KeyValue = tuple[Tensor, Tensor]
"""Keys and values of one layer, ``[B, K, T, D]`` each, keys after rotation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderOutput:
    """What one call of the decoder returns.

    ``logits``: ``[B, S, V]``, or ``[B, 1, V]`` when only the last token was asked for.
    ``past_key_values``: one :data:`KeyValue` per layer. ``loss``: scalar float32, with labels only.
    ``hidden_states``: ``[B, S, H]`` each, what every layer reads and, behind the final norm, what the head does; empty
    where nobody asked.
    """

    logits: Tensor
    past_key_values: list[KeyValue]
    loss: Tensor | None = None
    hidden_states: tuple[Tensor, ...] = ()


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
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps)
            self.k_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps)

    def forward(
        self, x_BSH: Tensor, rotary: Rotation | None, mask_B1ST: Tensor, past: KeyValue
    ) -> tuple[Tensor, KeyValue]:
        """Return ``[B, S, H]`` and the layer's keys and values ``[B, K, T, D]``."""
        config = self.config
        q_BSC, k_BSC, v_BSC = self.rotated_qkv(self.qkv(x_BSH), rotary)
        # Keys are kept rotated: the past is never rotated again, whatever comes behind it.
        output_BSC, key, value = grouped_attention(
            q_BSC, k_BSC, v_BSC, mask_B1ST, *past, num_heads=config.num_heads, kv_heads=config.kv_heads
        )
        return self.dense(output_BSC), (key, value)

    def rotated_qkv(self, qkv_BSC: Tensor, rotary: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``[B, S, N * D]``, keys and values ``[B, S, K * D]`` of the projection, ready for attention."""
        config = self.config
        q_BSC, k_BSC, v_BSC = torch.split(qkv_BSC, [config.q_size, config.kv_size, config.kv_size], dim=-1)
        if config.qk_norm:
            # Before the rotation, as in Glm4MoeAttention: behind it the norm's weight would scale pairs unevenly.
            q_BSC, k_BSC = _each_head(self.q_norm, q_BSC, config), _each_head(self.k_norm, k_BSC, config)
        if rotary is not None and config.rotary is not None:
            interleaved = config.rotary.interleaved
            q_BSC = rotary_embedding(q_BSC, rotary, num_heads=config.num_heads, interleaved=interleaved)
            k_BSC = rotary_embedding(k_BSC, rotary, num_heads=config.kv_heads, interleaved=interleaved)
        return q_BSC, k_BSC, v_BSC


def _each_head(head_norm: nn.Module, x_BSC: Tensor, config: GlmConfig) -> Tensor:
    """Norm over the channels of each head."""
    normed: Tensor = head_norm(x_BSC.reshape(*x_BSC.shape[:2], -1, config.head_dim))
    return normed.flatten(-2)


class GatedMlp(nn.Module):
    """SwiGLU (arXiv:2002.05202): ``down(silu(gate) * up)``, gate and up packed in one projection ``[2 F, H]``."""

    def __init__(self, config: GlmConfig, ffn_size: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.hidden_size, 2 * ffn_size, bias=config.linear_bias)
        self.down = nn.Linear(ffn_size, config.hidden_size, bias=config.linear_bias)

    def forward(self, x_BSH: Tensor) -> Tensor:
        """Return ``[B, S, H]``."""
        # The gate comes first in every published file that packs the two.
        gate_BSF, up_BSF = self.gate_up(x_BSH).chunk(2, dim=-1)
        down: Tensor = self.down(functional.silu(gate_BSF) * up_BSF)
        return down


class PlainMlp(nn.Module):
    """``down(gelu(up(x)))``: GLM with the exact GELU, ChatGLM-6B with its tanh approximation."""

    def __init__(self, config: GlmConfig) -> None:
        super().__init__()
        self.approximate = "tanh" if config.activation is Activation.GELU_TANH else "none"
        self.up = nn.Linear(config.hidden_size, config.ffn_size, bias=config.linear_bias)
        self.down = nn.Linear(config.ffn_size, config.hidden_size, bias=config.linear_bias)

    def forward(self, x_BSH: Tensor) -> Tensor:
        """Return ``[B, S, H]``."""
        down: Tensor = self.down(functional.gelu(self.up(x_BSH), approximate=self.approximate))
        return down


class Experts(nn.Module):
    """A mixture of experts beside experts that see every token. Routing is computed in float32.

    Source: ``Glm4MoeMoE`` of transformers.
    """

    def __init__(self, config: GlmConfig, experts: ExpertsConfig) -> None:
        super().__init__()
        self.experts = experts
        self.router = nn.Linear(config.hidden_size, experts.routed, bias=False, dtype=torch.float32)
        self.choice_bias = nn.Parameter(torch.zeros(experts.routed, dtype=torch.float32))
        self.gate_up = nn.Parameter(torch.empty(experts.routed, 2 * experts.ffn_size, config.hidden_size))
        self.down = nn.Parameter(torch.empty(experts.routed, config.hidden_size, experts.ffn_size))
        self.shared = GatedMlp(config, experts.ffn_size * experts.shared) if experts.shared else None

    def forward(self, x_BSH: Tensor) -> Tensor:
        """Return ``[B, S, H]``."""
        x_XH = x_BSH.reshape(-1, x_BSH.shape[-1])
        # float32 as in transformers: in half precision scores tie, and which expert is taken becomes arbitrary.
        scores_XE = self.router(x_BSH.float()).sigmoid().reshape(-1, self.experts.routed)
        weights_XK, experts_XK = route(
            scores_XE,
            self.choice_bias,
            per_token=self.experts.per_token,
            normalize=self.experts.normalize,
            scale=self.experts.scale,
            groups=self.experts.groups,
            chosen_groups=self.experts.chosen_groups,
        )
        mixed_BSH = mix_experts(x_XH, weights_XK, experts_XK, self.gate_up, self.down).reshape(x_BSH.shape)
        return mixed_BSH if self.shared is None else mixed_BSH + self.shared(x_BSH)


def mlp(config: GlmConfig, index: int) -> nn.Module:
    """What stands in layer ``index`` after attention."""
    if config.experts is not None and index >= config.experts.first_layer:
        return Experts(config, config.experts)
    return GatedMlp(config, config.ffn_size) if config.activation is Activation.SWIGLU else PlainMlp(config)


class Layer(nn.Module):
    """Norm, attention, residual; norm, MLP, residual.

    Native GLM-4 (0414, Z1) norms the two outputs as well (``sandwich_norms``). ``residual_from_norm`` takes the
    residual from the norm's output, times ``residual_alpha`` (ChatGLM-6B; ChatGLM2's
    ``apply_residual_connection_post_layernorm``).
    """

    def __init__(self, config: GlmConfig, index: int) -> None:
        super().__init__()
        self.residual_from_norm = config.residual_from_norm
        self.residual_alpha = config.residual_alpha
        self.attention_norm = norm(config)
        self.attention = Attention(config)
        self.attention_output_norm = norm(config) if config.sandwich_norms else nn.Identity()
        self.mlp_norm = norm(config)
        self.mlp = mlp(config, index)
        self.mlp_output_norm = norm(config) if config.sandwich_norms else nn.Identity()

    def forward(
        self, x_BSH: Tensor, rotary: Rotation | None, mask_B1ST: Tensor, past: KeyValue
    ) -> tuple[Tensor, KeyValue]:
        """Return the layer's output ``[B, S, H]`` and its cache."""
        normed_BSH = self.attention_norm(x_BSH)
        attended_BSH, present = self.attention(normed_BSH, rotary, mask_B1ST, past)
        x_BSH = self._residual(x_BSH, normed_BSH) + self.attention_output_norm(attended_BSH)
        normed_BSH = self.mlp_norm(x_BSH)
        return self._residual(x_BSH, normed_BSH) + self.mlp_output_norm(self.mlp(normed_BSH)), present

    def _residual(self, x_BSH: Tensor, normed_BSH: Tensor) -> Tensor:
        residual_BSH = normed_BSH if self.residual_from_norm else x_BSH
        return residual_BSH if self.residual_alpha == 1 else residual_BSH * self.residual_alpha


@contextmanager
def building_in(dtype: torch.dtype) -> Iterator[None]:
    """Modules made inside have this dtype; ``module.half()`` fails under fake tensors, and converts all alike."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class Decoder(nn.Module):
    """Embedding, layers, final norm, head.

    Parameter names are this project's own and the same for every family; ``families/`` maps the official names
    onto them. Rotary tables are buffers outside the state dict: they follow from the config.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: GlmConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.rotary is None:
            self.position_embedding = nn.Embedding(config.max_positions, config.hidden_size)
            self.block_embedding = nn.Embedding(config.max_positions, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.num_layers))
        self.final_norm = norm(config) if config.final_norm else nn.Identity()
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tied_head:
            self.head.weight = self.embedding.weight
        self.rebuild_tables(torch.get_default_dtype())

    def rebuild_tables(self, dtype: torch.dtype) -> None:
        """Compute the rotary tables again, e.g. after the model was made on the meta device."""
        if self.config.rotary is None:
            return
        # Angles are rounded once, from float32; ChatGLM2's own code computes them in float16 (docs/architecture.md).
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
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Sequence[KeyValue] | None = None,
        labels_BS: Tensor | None = None,
        *,
        last_logits_only: bool = False,
        output_hidden_states: bool = False,
    ) -> DecoderOutput:
        """Decode ``S`` new tokens on top of the past.

        Args:
            input_ids_BS: int64 ``[B, S]``.
            attention_mask: integer ``[B, P + S]``, 1 = real token; default all ones. With ``prefix_mask``: bool
                ``[B, 1, S, P + S]``, True = attend; default causal.
            position_ids: int64 ``[B, S]``; default counts on from the past. With two axes: ``[B, 2, S]``; default
                the same and zeros.
            past_key_values: one pair ``[B, K, P, D]`` per layer; default no past.
            labels_BS: int64 ``[B, S]``, -100 = not counted; the loss is the mean cross entropy in float32 against
                the label ``label_shift`` tokens on.
            last_logits_only: compute logits ``[B, 1, V]`` of the last token.
            output_hidden_states: keep what each layer reads, and return it.
        """
        past = self.empty_cache(input_ids_BS.shape[0]) if past_key_values is None else past_key_values
        hidden_BSH, rotary, mask_B1ST = self.embed(input_ids_BS, attention_mask, position_ids, past[0][0].shape[2])
        present: list[KeyValue] = []
        read: list[Tensor] = []
        for layer, layer_past in zip(self.layers, past, strict=True):
            if output_hidden_states:
                read.append(hidden_BSH)
            hidden_BSH, layer_present = layer(hidden_BSH, rotary, mask_B1ST, layer_past)
            present.append(layer_present)
        hidden_BSH = self.final_norm(hidden_BSH)
        if output_hidden_states:
            read.append(hidden_BSH)
        # Before the head: the product with the vocabulary is the dearest of a prompt.
        if last_logits_only:
            hidden_BSH = hidden_BSH[:, -1:]
        logits_BSV = self.head(hidden_BSH)
        loss = None if labels_BS is None else label_loss(logits_BSV, labels_BS, shift=self.config.label_shift)
        return DecoderOutput(logits=logits_BSV, past_key_values=present, loss=loss, hidden_states=tuple(read))

    def embed(
        self, input_ids_BS: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, past_len: int
    ) -> tuple[Tensor, Rotation | None, Tensor]:
        """What the first layer reads ``[B, S, H]``, and what every layer turns and masks by."""
        batch, query_len = input_ids_BS.shape
        if position_ids is None:
            position_ids = self._counted_positions(input_ids_BS, past_len)
        if attention_mask is None or not self.config.prefix_mask:
            real_BT = input_ids_BS.new_ones(batch, past_len + query_len) if attention_mask is None else attention_mask
            mask_B1ST = causal_mask(real_BT, query_len)
        else:
            mask_B1ST = prefix_mask(attention_mask)
        hidden_BSH = self.embedding(input_ids_BS)
        if self.config.rotary is not None:
            return hidden_BSH, rotation(self.cos, self.sin, position_ids), mask_B1ST
        places, blocks = self.position_embedding(position_ids[:, 0]), self.block_embedding(position_ids[:, 1])
        return hidden_BSH + places + blocks, None, mask_B1ST

    def _counted_positions(self, input_ids_BS: Tensor, past_len: int) -> Tensor:
        batch, query_len = input_ids_BS.shape
        counted = torch.arange(past_len, past_len + query_len, device=input_ids_BS.device).expand(batch, query_len)
        if self.config.position_axes == 1:
            return counted
        return torch.stack((counted, torch.zeros_like(counted)), dim=1)


def linear_weights(model: nn.Module) -> list[str]:
    """Names of the linear layers' weights; routers, which are float32 in every model, are left out."""
    return [
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.endswith(ROUTER)
    ]


def label_loss(logits_BSV: Tensor, labels_BS: Tensor, *, shift: int) -> Tensor:
    """Mean cross entropy in float32; labels of -100 are left out.

    ``shift`` 1: each token is predicted from those before it. 0: labels are aligned with logits already (GLM).
    """
    predicted = logits_BSV[:, : logits_BSV.shape[1] - shift].flatten(0, 1).float()
    return functional.cross_entropy(predicted, labels_BS[:, shift:].flatten(), ignore_index=-100)
