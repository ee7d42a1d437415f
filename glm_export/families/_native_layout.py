"""What the classes inside transformers share: ``GlmForCausalLM`` and ``Glm4ForCausalLM``.

Source: ``configuration_glm.py``, ``modeling_glm.py``, ``configuration_glm4.py``, ``modeling_glm4.py`` of transformers.
"""

from __future__ import annotations

from typing import Any

from glm_export.errors import ConfigError
from glm_export.families._keys import ConfigKeys
from glm_export.spec.config import ExpertsConfig, GlmConfig, RotaryConfig
from glm_export.spec.weight_map import WeightMap, WeightRule, rule, stack_rows

SPLIT_NAMES = ("q_proj", "k_proj", "v_proj")


def read(
    keys: ConfigKeys,
    *,
    sandwich_norms: bool,
    interleaved: bool = True,
    experts: ExpertsConfig | None = None,
    qk_norm: bool = False,
) -> GlmConfig:
    """The common keys; defaults are those of the configuration classes.

    Raises:
        ConfigError: an unknown key, a value this project does not compute, or inconsistent sizes.
    """
    keys.fixed("hidden_act", "silu", "swish", why="the gate is SwiGLU")
    keys.fixed("quantization_config", why="a quantized checkpoint cannot be exported; use the bfloat16 release")
    hidden, heads = keys.required("hidden_size"), keys.required("num_attention_heads")
    head_dim = keys.optional("head_dim", hidden // heads)
    base, partial = _rotary(keys)
    config = GlmConfig(
        family=keys.family,
        vocab_size=keys.required("vocab_size"),
        hidden_size=hidden,
        num_layers=keys.required("num_hidden_layers"),
        num_heads=heads,
        kv_heads=keys.required("num_key_value_heads"),
        head_dim=head_dim,
        ffn_size=keys.required("intermediate_size"),
        max_positions=keys.required("max_position_embeddings"),
        rotary=RotaryConfig(dim=int(head_dim * partial), base=base, interleaved=interleaved),
        norm_eps=keys.required("rms_norm_eps"),
        qkv_bias=keys.optional("attention_bias", False),
        sandwich_norms=sandwich_norms,
        tied_head=keys.optional("tie_word_embeddings", False),
        qk_norm=qk_norm,
        experts=experts,
        stored_dtype=keys.stored_dtype(),
        eos_token_ids=keys.token_ids("eos_token_id"),
        pad_token_id=keys.optional("pad_token_id", 0),
    )
    keys.finish({})
    return config


def _rotary(keys: ConfigKeys) -> tuple[float, float]:
    """Rotary base and partial factor, from flat keys (transformers 4) or ``rope_parameters`` (transformers 5)."""
    flat_base, flat_partial = keys.optional("rope_theta", 10000.0), keys.optional("partial_rotary_factor", 0.5)
    keys.fixed("rope_scaling", why="no released GLM scales its rotary positions this way")
    grouped = dict(keys.optional("rope_parameters", {}))
    if grouped.pop("rope_type", "default") != "default":
        raise ConfigError("config.json has rope_parameters of another rope_type than 'default', which is not supported")
    base, partial = grouped.pop("rope_theta", flat_base), grouped.pop("partial_rotary_factor", flat_partial)
    if grouped:
        raise ConfigError(
            f"config.json has unknown rope_parameters that could change numbers: {', '.join(sorted(grouped))}"
        )
    return float(base), float(partial)


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
    ignored = {"*rotary_emb.inv_freq": "follows from config.json"}
    if config.tied_head:
        ignored["lm_head.weight"] = "tied to the embedding"
    return WeightMap(rules=tuple(rules), ignored=ignored)


def border_rules(config: GlmConfig) -> list[WeightRule]:
    """Embedding, head, final norm."""
    hidden, vocab = config.hidden_size, config.vocab_size
    head = "model.embed_tokens.weight" if config.tied_head else "lm_head.weight"
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
