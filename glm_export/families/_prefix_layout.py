"""What GLM (2022) and ChatGLM-6B share: the names inside their layers, LayerNorm and biases everywhere.

Source: ``modeling_glm.py`` of THUDM/glm-10b, ``modeling_chatglm.py`` of THUDM/chatglm-6b.
"""

from __future__ import annotations

from glm_export.spec.config import GlmConfig
from glm_export.spec.weight_map import Layout, WeightRule, linear_rules, norm_rules


def body_rules(config: GlmConfig, *, qkv_layout: Layout) -> list[WeightRule]:
    """Layers and final norm; ``qkv_layout`` says how rows of the packed projection are stored."""
    rules = norm_rules("final_norm", "transformer.final_layernorm", config)
    hidden, ffn = config.hidden_size, config.ffn_size
    for i in range(config.num_layers):
        target, source = f"layers.{i}", f"transformer.layers.{i}"
        attention = f"{source}.attention"
        rules += [
            *norm_rules(f"{target}.attention_norm", f"{source}.input_layernorm", config),
            *norm_rules(f"{target}.mlp_norm", f"{source}.post_attention_layernorm", config),
            *linear_rules(
                f"{target}.attention.qkv", f"{attention}.query_key_value", 3 * hidden, hidden,
                bias=True, layout=qkv_layout,
            ),
            *linear_rules(f"{target}.attention.dense", f"{attention}.dense", hidden, hidden, bias=True),
            *linear_rules(f"{target}.mlp.up", f"{source}.mlp.dense_h_to_4h", ffn, hidden, bias=True),
            *linear_rules(f"{target}.mlp.down", f"{source}.mlp.dense_4h_to_h", hidden, ffn, bias=True),
        ]  # fmt: skip
    return rules
