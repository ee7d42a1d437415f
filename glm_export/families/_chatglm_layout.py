"""What ChatGLM2, ChatGLM3 and GLM-4 in its remote-code layout share: keys and tensor names.

Source: ``configuration_chatglm.py`` and ``modeling_chatglm.py`` of THUDM/chatglm2-6b, chatglm3-6b, glm-4-9b-chat.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glm_export.families._keys import ConfigKeys
from glm_export.spec.config import GlmConfig, Norm, RotaryConfig
from glm_export.spec.weight_map import HeadwiseQkv, WeightMap, WeightRule, as_stored, norm_rules, rule

INERT = {
    "apply_query_key_layer_scaling": "scales scores down and up again by the same number",
    "attention_softmax_in_fp32": "precision of the softmax in half precision; ours is always float32",
    "bias_dropout_fusion": "which kernel computes the same sum",
    "prefix_projection": "how a P-Tuning prefix is stored; its tensors say so",
    "quantization_bit": "the tensors say how they are quantized",
    "tie_word_embeddings": "the official class has an output layer of its own, whatever the key says",
    "max_position_embeddings": "seq_length is what the official code reads",
    "torch_dtype": "what the tensors are stored in",
}
VOCAB_KEY = "padded_vocab_size"


def read(values: Mapping[str, Any], *, family: str, rotary_of: str, context: int) -> GlmConfig:
    """The common keys.

    Args:
        values: parsed ``config.json``.
        family: whose name the config carries.
        rotary_of: what ``rope_ratio`` does, ``"positions"`` (divides them) or ``"base"`` (multiplies it).
        context: ``seq_length`` when the key is absent.

    Raises:
        ConfigError: an unknown key, a value this project does not compute, or inconsistent sizes.
    """
    keys = ConfigKeys(values, family=family)
    keys.fixed("original_rope", True, why="the publisher's code implements no other rotary embedding")
    keys.fixed("fp32_residual_connection", False, why="the publisher's code cannot run with it in half precision")
    keys.fixed("rope_scaling", why="the publisher's code scales by rope_ratio alone")
    keys.fixed("interleaved_qkv", False, why="the publisher's code has no such layout")
    keys.fixed("rotary_percent", 0.5, why="the publisher's code rotates half of each head")
    keys.fixed("quantization_embeddings", False, why="the publisher's code quantizes no embedding")
    heads, head_dim = keys.count("num_attention_heads"), keys.count("kv_channels")
    num_layers, vocab_size = keys.count("num_layers"), keys.count(VOCAB_KEY)
    keys.fixed("num_hidden_layers", num_layers, why="it must repeat num_layers")
    keys.fixed("vocab_size", vocab_size, why=f"it must repeat {VOCAB_KEY}")
    multi_query, groups = keys.flag("multi_query_attention", False), keys.count("multi_query_group_num", 1)
    ratio = keys.number("rope_ratio", 1)
    linear_bias, prefix_length = keys.flag("add_bias_linear", False), keys.count("pre_seq_len", 0)
    config = GlmConfig(
        family=family,
        vocab_size=vocab_size,
        hidden_size=keys.count("hidden_size"),
        num_layers=num_layers,
        num_heads=heads,
        kv_heads=groups if multi_query else heads,
        head_dim=head_dim,
        ffn_size=keys.count("ffn_hidden_size"),
        # A prefix takes the first positions, and none from the text.
        max_positions=keys.count("seq_length", context) + prefix_length,
        rotary=RotaryConfig(
            # Half of each head stands still: ChatGLM2's code rotates rot_dim = kv_channels // 2 channels.
            dim=head_dim // 2,
            # rope_ratio has two meanings: ChatGLM2-32k divides positions by it, ChatGLM3 and GLM-4 raise the base.
            base=10000.0 * (ratio if rotary_of == "base" else 1.0),
            position_scale=ratio if rotary_of == "positions" else 1.0,
        ),
        norm=Norm.RMS if keys.flag("rmsnorm", True) else Norm.LAYER,
        norm_eps=keys.number("layernorm_epsilon"),
        headwise_qkv=not multi_query,
        qkv_bias=keys.flag("add_qkv_bias", False) or linear_bias,
        linear_bias=linear_bias,
        final_norm=keys.flag("post_layer_norm", True),
        residual_from_norm=keys.flag("apply_residual_connection_post_layernorm", False),
        stored_dtype=keys.stored_dtype(),
        eos_token_ids=keys.token_ids("eos_token_id"),
        pad_token_id=keys.count("pad_token_id", 0),
        prefix_length=prefix_length,
    )
    keys.finish(INERT)
    return config


def weight_map(config: GlmConfig) -> WeightMap:
    """Official names and shapes of every tensor."""
    hidden, vocab = config.hidden_size, config.vocab_size
    rules = [
        rule("embedding.weight", "transformer.embedding.word_embeddings.weight", vocab, hidden),
        rule("head.weight", "transformer.output_layer.weight", vocab, hidden),
    ]
    if config.final_norm:
        rules += norm_rules("final_norm", "transformer.encoder.final_layernorm", config)
    for i in range(config.num_layers):
        rules += _layer(f"layers.{i}", f"transformer.encoder.layers.{i}", config)
    return WeightMap(
        rules=tuple(rules),
        ignored={
            "*rotary_pos_emb.inv_freq": "follows from config.json",
            "*prefix_encoder.*": "a P-Tuning prefix, which becomes the initial cache",
        },
    )


def _layer(target: str, source: str, config: GlmConfig) -> list[WeightRule]:
    hidden, qkv_rows = config.hidden_size, config.q_size + 2 * config.kv_size
    layout = HeadwiseQkv(config.num_heads) if config.headwise_qkv else as_stored
    rules = [
        *norm_rules(f"{target}.attention_norm", f"{source}.input_layernorm", config),
        *norm_rules(f"{target}.mlp_norm", f"{source}.post_attention_layernorm", config),
        rule(
            f"{target}.attention.qkv.weight",
            f"{source}.self_attention.query_key_value.weight",
            qkv_rows,
            hidden,
            layout=layout,
        ),
        rule(f"{target}.attention.dense.weight", f"{source}.self_attention.dense.weight", hidden, config.q_size),
        rule(f"{target}.mlp.gate_up.weight", f"{source}.mlp.dense_h_to_4h.weight", 2 * config.ffn_size, hidden),
        rule(f"{target}.mlp.down.weight", f"{source}.mlp.dense_4h_to_h.weight", hidden, config.ffn_size),
    ]
    if config.qkv_bias:
        bias = f"{source}.self_attention.query_key_value.bias"
        rules.append(rule(f"{target}.attention.qkv.bias", bias, qkv_rows, layout=layout))
    if config.linear_bias:
        rules += [
            rule(f"{target}.attention.dense.bias", f"{source}.self_attention.dense.bias", hidden),
            rule(f"{target}.mlp.gate_up.bias", f"{source}.mlp.dense_h_to_4h.bias", 2 * config.ffn_size),
            rule(f"{target}.mlp.down.bias", f"{source}.mlp.dense_4h_to_h.bias", hidden),
        ]
    return rules


def tiny(published: str, **changes: Any) -> dict[str, Any]:
    """A ``config.json`` of this layout, small enough for tests; ``published`` goes into ``_name_or_path``."""
    return {
        "_name_or_path": published,
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "apply_query_key_layer_scaling": True,
        "apply_residual_connection_post_layernorm": False,
        "attention_softmax_in_fp32": True,
        "ffn_hidden_size": 112,
        "fp32_residual_connection": False,
        "hidden_size": 64,
        "kv_channels": 16,
        "layernorm_epsilon": 1e-5,
        "multi_query_attention": True,
        "multi_query_group_num": 2,
        "num_attention_heads": 4,
        "num_layers": 2,
        "original_rope": True,
        "padded_vocab_size": 320,
        "post_layer_norm": True,
        "rmsnorm": True,
        "seq_length": 256,
        "torch_dtype": "float32",
        "tie_word_embeddings": False,
    } | changes
