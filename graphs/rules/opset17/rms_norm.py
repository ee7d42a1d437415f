"""RMS norm in primitives."""

from __future__ import annotations

import onnx_ir as ir

from glm_export.graphs.queries import LAST, dtype_of, int_attribute
from glm_export.graphs.rewriter import MATCHED, NOT_MINE, Emitter, MatchResult, refused


class RmsNormToPrimitives:
    """``RMSNormalization(x, weight)`` -> ``x / sqrt(mean(x * x) + eps) * weight``, in float32 but for the weight."""

    name = "rms_norm"

    def matches(self, node: ir.Node) -> MatchResult:
        """Over the last axis."""
        if node.op_type != "RMSNormalization":
            return NOT_MINE
        return (
            MATCHED
            if int_attribute(node, "axis", LAST) == LAST
            else refused("it normalizes over more than the last axis")
        )

    def rewrite(self, node: ir.Node, emit: Emitter) -> list[ir.Value]:
        """Return the normed ``x``."""
        x, weight = node.inputs
        dtype, single = dtype_of(x), ir.DataType.FLOAT
        wide = x if dtype == single else emit.op("Cast", x, to=int(single))
        # arXiv:1910.07467, eq. 4. Opset 17 takes the axes as an attribute; from 18 on they are an input.
        mean = emit.op("ReduceMean", emit.op("Mul", wide, wide), axes=[LAST], keepdims=1)
        epsilon = emit.scalar(node.attributes["epsilon"].as_float(), single)
        normed = emit.op("Div", wide, emit.op("Sqrt", emit.op("Add", mean, epsilon)))
        normed = normed if dtype == single else emit.op("Cast", normed, to=int(dtype))
        return [emit.op("Mul", normed, weight)]
