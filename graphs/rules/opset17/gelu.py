"""GELU in primitives."""

from __future__ import annotations

import math

import onnx_ir as ir

from glm_export.graphs.queries import dtype_of
from glm_export.graphs.rewriter import MATCHED, NOT_MINE, Emitter, MatchResult


class GeluToPrimitives:
    """``Gelu(x)`` -> ``x / 2 * (1 + erf(x / sqrt(2)))``, or its tanh approximation."""

    name = "gelu"

    def matches(self, node: ir.Node) -> MatchResult:
        """Any."""
        return MATCHED if node.op_type == "Gelu" else NOT_MINE

    def rewrite(self, node: ir.Node, emit: Emitter) -> list[ir.Value]:
        """Return the activation."""
        (x,) = node.inputs
        dtype = dtype_of(x)

        def times(value: ir.Value | None, factor: float) -> ir.Value:
            return emit.op("Mul", value, emit.scalar(factor, dtype))

        approximate = node.attributes["approximate"].as_string() if "approximate" in node.attributes else "none"
        if approximate == "tanh":
            # arXiv:1606.08415, section 2: x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))).
            cube = emit.op("Mul", emit.op("Mul", x, x), x)
            curve = emit.op("Tanh", times(emit.op("Add", x, times(cube, 0.044715)), math.sqrt(2 / math.pi)))
        else:
            curve = emit.op("Erf", times(x, math.sqrt(0.5)))
        return [emit.op("Mul", times(x, 0.5), emit.op("Add", curve, emit.scalar(1.0, dtype)))]
