"""Opset 17 and primitives alone, for runtimes that know no attention: TensorRT 8.6 to 10.14, older ONNX Runtimes."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from glm_export.graphs.dialect import Dialect
from glm_export.graphs.dialects import onnx as canonical
from glm_export.spec.capabilities import Capabilities, IntegerCache
from glm_export.spec.config import Activation, GlmConfig, Norm
from glm_export.spec.signature import Signature

if TYPE_CHECKING:  # rules load onnx
    from glm_export.graphs.rewriter import Rule

PRIMITIVES = {
    "Cast", "Concat", "Div", "Erf", "Gather", "ReduceMean", "Reshape", "Softmax", "Split", "Sqrt", "Sub", "Tanh",
    "Transpose", "Unsqueeze", "Where",
}  # fmt: skip
LOWERED = {"Attention", "RotaryEmbedding", "RMSNormalization", "Gelu"}


def expected_rewrites(config: GlmConfig, _: Signature) -> Counter[str]:
    """Every canonical operator that opset 17 lacks, once each time it stands there."""
    counts = canonical.expected_counts(config)
    return Counter(
        {
            "attention": counts["Attention"],
            "rotary": counts["RotaryEmbedding"],
            "rms_norm": counts["RMSNormalization"],
            "gelu": counts["Gelu"],
            "split": counts["Split"] - counts["Attention"],
        }
    )


def expected_counts(config: GlmConfig) -> Counter[str]:
    """Two products more a layer than the canonical program, a softmax a layer, and none of what was lowered."""
    counts = canonical.expected_counts(config)
    layers = config.num_layers
    norms = counts["RMSNormalization"] if config.norm is Norm.RMS else 0
    return Counter(
        dict.fromkeys(LOWERED, 0)
        | {
            "MatMul": counts["MatMul"] + 2 * layers,
            "Softmax": layers,
            "Sqrt": norms,
            "Erf": layers if config.activation is Activation.GELU else 0,
        }
    )


def rules() -> tuple[Rule, ...]:
    """Every canonical operator that opset 17 lacks."""
    from glm_export.graphs.rules.opset17.attention import AttentionToPrimitives
    from glm_export.graphs.rules.opset17.gelu import GeluToPrimitives
    from glm_export.graphs.rules.opset17.rms_norm import RmsNormToPrimitives
    from glm_export.graphs.rules.opset17.rotary import RotaryToPrimitives
    from glm_export.graphs.rules.opset17.split import SplitIntoSizes

    return AttentionToPrimitives(), RotaryToPrimitives(), RmsNormToPrimitives(), GeluToPrimitives(), SplitIntoSizes()


DIALECT = Dialect(
    name="portable",
    opset=17,
    ir_version=8,
    allowed_ops=frozenset(canonical.DIALECT.allowed_ops - LOWERED | PRIMITIVES),
    expected_counts=expected_counts,
    rules=rules,
    can=Capabilities(integer_cache=lambda _: IntegerCache.CONCAT, implicit_int8=True, tensorrt=True),
    expected_rewrites=expected_rewrites,
    runs_on="TensorRT 8.6 to 10.14, any runtime with opset 17",
)
