"""The standard's own words: one ``RotaryEmbedding`` per q and k, one ``Attention`` per layer (opset 23)."""

from __future__ import annotations

from collections import Counter

from glm_export.graphs.dialect import Dialect
from glm_export.spec.capabilities import Capabilities, IntegerCache
from glm_export.spec.config import Activation, GlmConfig, Norm

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
LAYER_OPS = {"MatMul", "Add", "Split", "RotaryEmbedding", "Attention", "Sigmoid", "Mul", "Gelu"}
# Two positions a token: their angles stand side by side, once per program.
POSITION_OPS = {"Gather", "Concat"}
# Routing to experts, and every expert's answer weighted.
EXPERT_OPS = {
    "TopK", "GatherElements", "ScatterElements", "ReduceSum", "Div", "Cast", "Expand", "Transpose", "ConstantOfShape",
}  # fmt: skip
NORM_OP = {Norm.RMS: "RMSNormalization", Norm.LAYER: "LayerNormalization"}


def expected_counts(config: GlmConfig) -> Counter[str]:
    """Per layer: 2 rotary embeddings, 1 attention, 4 matrix products, 2 norms; fewer or more where a family differs.

    Learned positions have no rotary embedding; sandwich norms are two norms more, and norms of q and k as well; a
    layer of experts has the router's product, and two of the shared experts.
    """
    layers = config.num_layers
    of_experts = len(config.expert_layers)
    # Scores of groups and the best of those, where experts are chosen in groups.
    choices = 3 if config.experts and config.experts.groups > 1 else 1
    shared = of_experts if config.experts and config.experts.shared else 0
    gates = layers + shared if config.activation is Activation.SWIGLU else 0
    norms = 2 + 2 * config.sandwich_norms + 2 * config.qk_norm
    # Operators of what a config does not have are allowed elsewhere, but not here.
    absent = {} if config.experts else dict.fromkeys(EXPERT_OPS, 0)
    return Counter(
        absent
        | {
            "RotaryEmbedding": 2 * layers if config.rotary else 0,
            "Attention": layers,
            "MatMul": 4 * layers + of_experts + 2 * shared + 1,
            "Split": layers + gates,
            "Gelu": layers if config.activation is not Activation.SWIGLU else 0,
            "TopK": choices * of_experts,
            NORM_OP[config.norm]: layers * norms + config.final_norm,
        }
    )


DIALECT = Dialect(
    name="onnx",
    opset=23,
    allowed_ops=frozenset(MASK_OPS | LAYER_OPS | POSITION_OPS | EXPERT_OPS | set(NORM_OP.values())),
    expected_counts=expected_counts,
    can=Capabilities(
        qdq_dtypes=frozenset({"int8", "int4", "float8e4m3fn"}),
        qdq_blocks=True,
        half_scales=True,
        integer_cache=lambda _: IntegerCache.ATTENTION,
    ),
    runs_on="ONNX Runtime (CPU, CUDA), Optimum, any runtime with opset 23",
)
