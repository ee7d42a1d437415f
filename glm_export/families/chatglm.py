"""ChatGLM-6B (v1.1): rotary embedding in two dimensions, a prefix that sees itself, a scaled residual.

What surprises: the residual is the norm's output times sqrt(2 * 28) whatever the number of layers; rotary frequencies
are rounded to float16 in every dtype; the head is tied to the embedding although files hold both.

Source: THUDM/chatglm-6b, ``configuration_chatglm.py``, ``modeling_chatglm.py``, ``tokenization_chatglm.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glm_export.errors import ConfigError
from glm_export.families._keys import ConfigKeys
from glm_export.families._prefix_layout import body_rules
from glm_export.spec.config import Activation, GlmConfig, Norm, RotaryConfig
from glm_export.spec.weight_map import HeadwiseQkv, WeightMap, rule

TOKENIZER = "ice_text"
CHAT = "counted_rounds"
# GLMBlock's default of 28 layers: the official model never passes its own number on.
RESIDUAL_ALPHA = (2 * 28) ** 0.5

HEAD_COPY = "lm_head.weight"
INERT = {
    "prefix_projection": "how a P-Tuning prefix is stored; its tensors say so",
    "quantization_bit": "the tensors say how they are quantized",
    "quantization_embeddings": "the tensors say how they are quantized",
}


def config(values: Mapping[str, Any]) -> GlmConfig:
    """Read ``config.json``.

    Raises:
        ConfigError: an unknown key, a value this project does not compute, or inconsistent sizes.
    """
    keys = ConfigKeys(values, family="chatglm")
    keys.fixed("position_encoding_2d", True, why="no released ChatGLM-6B counts in one dimension")
    hidden, heads = keys.count("hidden_size"), keys.count("num_attention_heads")
    gmask, mask = keys.count("gmask_token_id"), keys.count("mask_token_id")
    if heads <= 0:
        raise ConfigError(f"config.json has num_attention_heads = {heads}, expected a positive whole number")
    result = GlmConfig(
        family="chatglm",
        vocab_size=keys.count("vocab_size"),
        hidden_size=hidden,
        num_layers=keys.count("num_layers"),
        num_heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        ffn_size=keys.count("inner_hidden_size", 4 * hidden),
        max_positions=keys.count("max_sequence_length", 2048),
        # Each half of a head follows a position of its own; within it pairs are halves, not neighbours.
        rotary=RotaryConfig(dim=hidden // heads // 2, interleaved=False, axes=2, float16_frequencies=True),
        norm=Norm.LAYER,
        norm_eps=keys.number("layernorm_epsilon"),
        headwise_qkv=True,
        qkv_bias=True,
        linear_bias=True,
        residual_from_norm=True,
        residual_alpha=RESIDUAL_ALPHA,
        # The official class ties its head unless it is told otherwise.
        tied_head=keys.flag("tie_word_embeddings", True),
        activation=Activation.GELU_TANH,
        prefix_mask=True,
        stored_dtype=keys.stored_dtype(),
        eos_token_ids=keys.token_ids("eos_token_id"),
        pad_token_id=keys.count("pad_token_id", 3),
        sop_token_id=keys.count("bos_token_id"),
        mask_token_ids=(gmask, mask),
        prefix_length=keys.count("pre_seq_len", 0),
    )
    keys.finish(INERT)
    return result


def weight_map(config: GlmConfig) -> WeightMap:
    """Official tensor names."""
    embedding = "transformer.word_embeddings.weight"
    head = embedding if config.tied_head else HEAD_COPY
    return WeightMap(
        rules=(
            rule("embedding.weight", embedding, config.vocab_size, config.hidden_size),
            rule("head.weight", head, config.vocab_size, config.hidden_size),
            *body_rules(config, qkv_layout=HeadwiseQkv(config.num_heads, axes=2)),
        ),
        ignored={
            "*rotary_emb.inv_freq": "overridden when loaded: follows from config.json",
            "transformer.prefix_encoder.*": "a P-Tuning prefix, which becomes the initial cache",
        },
        head_copy=HEAD_COPY,
    )


TINY: dict[str, Any] = {
    "_name_or_path": "THUDM/chatglm-6b",
    "architectures": ["ChatGLMModel"],
    "model_type": "chatglm",
    "bos_token_id": 304,
    "eos_token_id": 305,
    "mask_token_id": 300,
    "gmask_token_id": 301,
    "pad_token_id": 3,
    "hidden_size": 64,
    "inner_hidden_size": 256,
    "layernorm_epsilon": 1e-5,
    "max_sequence_length": 256,
    "num_attention_heads": 4,
    "num_layers": 2,
    "position_encoding_2d": True,
    "torch_dtype": "float32",
    "use_cache": True,
    "vocab_size": 320,
}
