"""What the classes inside transformers share: ``GlmForCausalLM`` and ``Glm4ForCausalLM``.

Source: ``configuration_glm.py``, ``modeling_glm.py``, ``configuration_glm4.py``, ``modeling_glm4.py`` of transformers.
"""

from __future__ import annotations

from typing import Any

from glm_export.families._keys import ConfigKeys
from glm_export.families._position_scaling import read_position_scaling
from glm_export.families._vision import LANGUAGE_MODEL, VISION_TOWER
from glm_export.spec.config import ExpertsConfig, GlmConfig, RotaryConfig
from glm_export.spec.weight_map import WeightMap, WeightRule, rule, stack_rows

INERT = {"mlp_bias": "these classes have no such bias", "image_token_id": "only for a vision model"}
HEAD_COPY = "lm_head.weight"
SPLIT_NAMES = ("q_proj", "k_proj", "v_proj")


def read(
    keys: ConfigKeys,
    *,
    sandwich_norms: bool,
    interleaved: bool = True,
    experts: ExpertsConfig | None = None,
    qk_norm: bool = False,
    qkv_bias: bool = False,
    partial: float = 0.5,
) -> GlmConfig:
    """The common keys; defaults are those of the configuration classes.

    Args:
        keys: of ``config.json``.
        sandwich_norms: whether outputs are normed too.
        interleaved: whether rotary pairs are neighbours.
        experts: of a mixture.
        qk_norm: whether queries and keys are normed.
        qkv_bias: whether projections have biases where ``attention_bias`` is absent.
        partial: what of a head is rotated where ``partial_rotary_factor`` is absent.

    Raises:
        ConfigError: an unknown key, a value this project does not compute, or inconsistent sizes.
    """
    keys.fixed("hidden_act", "silu", "swish", why="the gate is SwiGLU")
    hidden, heads = keys.count("hidden_size"), keys.count("num_attention_heads")
    head_dim = keys.count("head_dim", hidden // heads if heads > 0 else 0)
    scaling = read_position_scaling(keys, partial=partial, context=keys.count("max_position_embeddings"))
    config = GlmConfig(
        family=keys.family,
        vocab_size=keys.count("vocab_size"),
        hidden_size=hidden,
        num_layers=keys.count("num_hidden_layers"),
        num_heads=heads,
        kv_heads=keys.count("num_key_value_heads"),
        head_dim=head_dim,
        ffn_size=keys.count("intermediate_size"),
        max_positions=scaling.context,
        rotary=RotaryConfig(
            dim=int(head_dim * scaling.partial),
            base=scaling.base,
            position_scale=scaling.position_scale,
            interleaved=interleaved,
            yarn=scaling.yarn,
        ),
        norm_eps=keys.number("rms_norm_eps"),
        qkv_bias=keys.flag("attention_bias", qkv_bias),
        sandwich_norms=sandwich_norms,
        tied_head=keys.flag("tie_word_embeddings", False),
        qk_norm=qk_norm,
        experts=experts,
        stored_dtype=keys.stored_dtype(),
        eos_token_ids=keys.token_ids("eos_token_id"),
        pad_token_id=keys.count("pad_token_id", 0),
        notes=(scaling.note,) if scaling.note else (),
    )
    keys.finish(INERT)
    return config


def weight_map(config: GlmConfig) -> WeightMap:
    """Official names and shapes of every tensor of a model without experts."""
    rules = border_rules(config)
    for i in range(config.num_layers):
        target, source = f"layers.{i}", f"model.layers.{i}"
        rules += [
            *attention_rules(target, source, config),
            rule(
                f"{target}.mlp.gate_up.weight",
                f"{source}.mlp.gate_up_proj.weight",
                2 * config.ffn_size,
                config.hidden_size,
            ),
            rule(f"{target}.mlp.down.weight", f"{source}.mlp.down_proj.weight", config.hidden_size, config.ffn_size),
        ]
    return WeightMap(rules=tuple(rules), ignored=ignored_names(config), prefixes=LANGUAGE_MODEL, head_copy=HEAD_COPY)


def ignored_names(config: GlmConfig) -> dict[str, str]:
    """Official names that are known and left aside, and why."""
    ignored = {"*rotary_emb.inv_freq": "follows from config.json"}
    if config.text_part_of:
        ignored |= VISION_TOWER | {
            f"model.layers.{config.num_layers}.*": "predicts further tokens, not part of the model"
        }
    return ignored


def border_rules(config: GlmConfig) -> list[WeightRule]:
    """Embedding, head, final norm."""
    hidden, vocab = config.hidden_size, config.vocab_size
    head = "model.embed_tokens.weight" if config.tied_head else HEAD_COPY
    return [
        rule("embedding.weight", "model.embed_tokens.weight", vocab, hidden),
        rule("head.weight", head, vocab, hidden),
        rule("final_norm.weight", "model.norm.weight", hidden),
    ]


def attention_rules(target: str, source: str, config: GlmConfig) -> list[WeightRule]:
    """A layer's norms and attention; q, k, v are stacked into one projection."""
    hidden = config.hidden_size
    norms = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    if config.sandwich_norms:
        norms |= {"attention_output_norm": "post_self_attn_layernorm", "mlp_output_norm": "post_mlp_layernorm"}
    rules = [rule(f"{target}.{ours}.weight", f"{source}.{theirs}.weight", hidden) for ours, theirs in norms.items()]
    if config.qk_norm:
        rules += [
            rule(f"{target}.attention.{name}.weight", f"{source}.self_attn.{name}.weight", config.head_dim)
            for name in ("q_norm", "k_norm")
        ]
    rows = (config.q_size, config.kv_size, config.kv_size)
    for part, tail in (("weight", (hidden,)), ("bias", ())) if config.qkv_bias else (("weight", (hidden,)),):
        rules.append(
            WeightRule(
                target=f"{target}.attention.qkv.{part}",
                sources=tuple(f"{source}.self_attn.{name}.{part}" for name in SPLIT_NAMES),
                shapes=tuple((count, *tail) for count in rows),
                layout=stack_rows,
            )
        )
    dense = rule(f"{target}.attention.dense.weight", f"{source}.self_attn.o_proj.weight", hidden, config.q_size)
    return [*rules, dense]


def tiny(model_type: str, architecture: str, **changes: Any) -> dict[str, Any]:
    """A ``config.json`` of this layout, small enough for tests."""
    return {
        "model_type": model_type,
        "architectures": [architecture],
        "attention_bias": True,
        "head_dim": 16,
        "hidden_act": "silu",
        "hidden_size": 64,
        "intermediate_size": 112,
        "max_position_embeddings": 256,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "pad_token_id": 300,
        "eos_token_id": [300, 301, 302],
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "vocab_size": 320,
    } | changes
