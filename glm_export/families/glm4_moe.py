"""GLM-4.5, GLM-4.5-Air, GLM-4.6: the native ``Glm4MoeForCausalLM``, a mixture of experts.

Rotary pairs are two halves, not neighbours. Files hold one tensor for each expert, and a multi-token-prediction layer
at index ``num_hidden_layers`` that is not part of the model.

Source: ``configuration_glm4_moe.py`` and ``modeling_glm4_moe.py`` of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glm_export.families import _native_layout
from glm_export.families._keys import ConfigKeys
from glm_export.families._vision import LANGUAGE_MODEL
from glm_export.spec.config import ExpertsConfig, GlmConfig
from glm_export.spec.weight_map import WeightMap, WeightRule, rule, stack_rows

TOKENIZER = "tokenizer_json"
CHAT = "role_lines"


def config(values: Mapping[str, Any]) -> GlmConfig:
    """Read ``config.json``.

    Raises:
        ConfigError: an unknown key, a value this project does not compute, or inconsistent sizes.
    """
    keys = ConfigKeys(values, family="glm4_moe")
    keys.fixed("num_nextn_predict_layers", *range(9), why="how many layers beyond the model the files hold")
    keys.fixed(
        "topk_method", "noaux_tc", why="experts are chosen by score and bias, as the class inside transformers does"
    )
    keys.fixed("scoring_func", "sigmoid", why="scores are sigmoids, as in transformers")
    keys.fixed("moe_router_dtype", "float32", "fp32", why="experts are scored in float32")
    keys.fixed("decoder_sparse_step", 1, why="every layer behind the first dense ones has experts")
    experts = ExpertsConfig(
        routed=keys.count("n_routed_experts"),
        per_token=keys.count("num_experts_per_tok"),
        shared=keys.count("n_shared_experts", 0),
        ffn_size=keys.count("moe_intermediate_size"),
        first_layer=keys.count("first_k_dense_replace", 0),
        normalize=keys.flag("norm_topk_prob", True),
        scale=keys.number("routed_scaling_factor", 1.0),
        groups=keys.count("n_group", 1),
        chosen_groups=keys.count("topk_group", 1),
    )
    return _native_layout.read(
        keys, sandwich_norms=False, interleaved=False, experts=experts, qk_norm=keys.flag("use_qk_norm", False)
    )


def weight_map(config: GlmConfig) -> WeightMap:
    """Official tensor names; an expert's gate and up are stacked, and the experts of a layer stand in one tensor."""
    rules = _native_layout.border_rules(config)
    for i in range(config.num_layers):
        target, source = f"layers.{i}", f"model.layers.{i}"
        rules += _native_layout.attention_rules(target, source, config)
        if config.experts is None or i < config.experts.first_layer:
            rules += _gated(f"{target}.mlp", f"{source}.mlp", config.ffn_size, config)
        else:
            rules += _experts(f"{target}.mlp", f"{source}.mlp", config.experts, config)
    return WeightMap(
        rules=tuple(rules),
        ignored=_native_layout.ignored_names(config)
        | {f"model.layers.{config.num_layers}.*": "multi-token prediction, not part of the model"},
        prefixes=LANGUAGE_MODEL,
        head_copy=_native_layout.HEAD_COPY,
    )


def _gated(target: str, source: str, width: int, config: GlmConfig) -> list[WeightRule]:
    shape = (width, config.hidden_size)
    names = tuple(f"{source}.{name}_proj.weight" for name in ("gate", "up"))
    return [
        WeightRule(target=f"{target}.gate_up.weight", sources=names, shapes=(shape, shape), layout=stack_rows),
        rule(f"{target}.down.weight", f"{source}.down_proj.weight", config.hidden_size, width),
    ]


def _experts(target: str, source: str, experts: ExpertsConfig, config: GlmConfig) -> list[WeightRule]:
    numbers = range(experts.routed)
    up, down = (experts.ffn_size, config.hidden_size), (config.hidden_size, experts.ffn_size)
    gate_up = tuple(f"{source}.experts.{n}.{name}_proj.weight" for n in numbers for name in ("gate", "up"))
    rules = [
        rule(f"{target}.router.weight", f"{source}.gate.weight", experts.routed, config.hidden_size),
        rule(f"{target}.choice_bias", f"{source}.gate.e_score_correction_bias", experts.routed),
        WeightRule(target=f"{target}.gate_up", sources=gate_up, shapes=(up,) * len(gate_up), layout=stack_rows, each=2),
        WeightRule(
            target=f"{target}.down",
            sources=tuple(f"{source}.experts.{n}.down_proj.weight" for n in numbers),
            shapes=(down,) * experts.routed,
            each=1,
        ),
    ]
    if experts.shared:
        width = experts.ffn_size * experts.shared
        rules += _gated(f"{target}.shared", f"{source}.shared_experts", width, config)
    return rules


TINY = _native_layout.tiny(
    "glm4_moe", "Glm4MoeForCausalLM", n_routed_experts=6, num_experts_per_tok=2, n_shared_experts=1,
    moe_intermediate_size=40, first_k_dense_replace=1, norm_topk_prob=True, routed_scaling_factor=1.5, n_group=1,
    topk_group=1, num_nextn_predict_layers=1, use_qk_norm=True,
)  # fmt: skip
