"""The standard's own words: one ``RotaryEmbedding`` per q and k, one ``Attention`` per layer (opset 23)."""

from __future__ import annotations

from collections import Counter

from glm_export.config import GlmConfig, Norm
from glm_export.graphs.dialect import Dialect

# What makes the attention mask out of attention_mask: a handful of nodes, once per program.
MASK_OPS = {
    "Shape",
    "Squeeze",
    "Range",
    "Sub",
    "Reshape",
    "Slice",
    "Unsqueeze",
    "Equal",
    "Not",
    "LessOrEqual",
    "And",
    "Or",
}
LAYER_OPS = {"MatMul", "Add", "Split", "RotaryEmbedding", "Attention", "Sigmoid", "Mul"}
NORM_OP = {Norm.RMS: "RMSNormalization", Norm.LAYER: "LayerNormalization"}


def expected_counts(config: GlmConfig) -> Counter[str]:
    """Per layer: 2 rotary embeddings, 1 attention, 4 matrix products, 2 norms (4 with sandwich norms)."""
    norms = config.num_layers * (4 if config.sandwich_norms else 2) + config.final_norm
    return Counter(
        {
            "RotaryEmbedding": 2 * config.num_layers,
            "Attention": config.num_layers,
            "MatMul": 4 * config.num_layers + 1,
            "Split": 2 * config.num_layers,
            NORM_OP[config.norm]: norms,
        }
    )


DIALECT = Dialect(
    name="onnx",
    opset=23,
    allowed_ops=frozenset(MASK_OPS | LAYER_OPS | set(NORM_OP.values()) | {"Gather"}),
    expected_counts=expected_counts,
    runs_on="ONNX Runtime (CPU, CUDA), Optimum, any runtime with opset 23",
)
