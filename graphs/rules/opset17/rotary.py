"""Rotary embedding in primitives."""

from __future__ import annotations

import onnx_ir as ir

from glm_export.graphs.queries import LAST, int_attribute, last_dim
from glm_export.graphs.rewriter import MATCHED, NOT_MINE, Emitter, MatchResult, refused


class RotaryToPrimitives:
    """``RotaryEmbedding(x, cos, sin, positions)`` -> ``x`` cut into pairs, turned, and put together.

    The angles are looked up once for each table and set of positions, and shared by all layers.
    """

    name = "rotary"

    def matches(self, node: ir.Node) -> MatchResult:
        """Three-dimensional inputs with a known number of heads."""
        if node.op_type != "RotaryEmbedding":
            return NOT_MINE
        return MATCHED if int_attribute(node, "num_heads") else refused("num_heads is not given")

    def rewrite(self, node: ir.Node, emit: Emitter) -> list[ir.Value]:
        """``[B, S, N * D] -> [B, S, N, R] + [B, S, N, D - R] -> [B, S, N * D]``."""
        x, cos_table, sin_table, *rest = node.inputs
        positions = rest[0] if rest else None
        cos, sin = (self._angles(table, positions, emit) for table in (cos_table, sin_table))
        heads, channels = int_attribute(node, "num_heads"), last_dim(x)
        head_dim, half = channels // int_attribute(node, "num_heads"), last_dim(cos_table)
        rotated = 2 * half
        split = emit.op("Reshape", x, emit.ints(0, 0, heads, head_dim))
        straight: list[ir.Value] = []
        if rotated < head_dim:
            split, rest_value = emit.many("Split", split, emit.ints(rotated, head_dim - rotated), outputs=2, axis=LAST)
            straight = [rest_value]
        if int_attribute(node, "interleaved"):
            pairs = emit.op("Reshape", split, emit.ints(0, 0, heads, half, 2))
            first, second = emit.many("Split", pairs, emit.ints(1, 1), outputs=2, axis=LAST)
            cos, sin = (emit.op("Unsqueeze", angle, emit.ints(LAST)) for angle in (cos, sin))
        else:
            first, second = emit.many("Split", split, emit.ints(half, half), outputs=2, axis=LAST)
        rotated_first = emit.op("Sub", emit.op("Mul", first, cos), emit.op("Mul", second, sin))
        rotated_second = emit.op("Add", emit.op("Mul", second, cos), emit.op("Mul", first, sin))
        turned = emit.op("Concat", rotated_first, rotated_second, axis=LAST)
        if int_attribute(node, "interleaved"):
            turned = emit.op("Reshape", turned, emit.ints(0, 0, heads, rotated))
        whole = emit.op("Concat", turned, *straight, axis=LAST) if straight else turned
        return [emit.op("Reshape", whole, emit.ints(0, 0, channels))]

    def _angles(self, table: ir.Value | None, positions: ir.Value | None, emit: Emitter) -> ir.Value:
        """``[B, S, 1, R / 2]``."""
        key = ("angles", table, positions)
        if key not in emit.shared:
            angles = table if positions is None else emit.op("Gather", table, positions, axis=0)
            emit.shared[key] = emit.op("Unsqueeze", angles, emit.ints(2))
        return emit.shared[key]
