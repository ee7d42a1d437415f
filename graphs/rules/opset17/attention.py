"""Canonical operators in the words of opset 17: products, sums, shapes, softmax.

Heads that share keys are grouped by reshaping the queries; the cache is never copied for them.
Shapes: B batch, S query, T key, N query heads, K key-value heads, G = N / K, D head size, R rotated channels.
"""

from __future__ import annotations

import onnx_ir as ir

from glm_export.graphs.queries import LAST, dtype_of, int_attribute, last_dim
from glm_export.graphs.rewriter import MATCHED, NOT_MINE, Emitter, MatchResult, refused


class AttentionToPrimitives:
    """``Attention(q, k, v, mask, past)`` -> two ``MatMul`` and a ``Softmax`` over past and new keys.

    Scores and softmax are computed in float32 in every dtype, as the operator does.
    """

    name = "attention"

    def matches(self, node: ir.Node) -> MatchResult:
        """Packed heads, an explicit mask, and a cache."""
        if node.op_type != "Attention":
            return NOT_MINE
        if len(node.inputs) != 6 or any(value is None for value in node.inputs):
            return refused(f"expected q, k, v, mask and the two pasts, found {len(node.inputs)} inputs")
        return (
            MATCHED if not int_attribute(node, "is_causal") else refused("it is causal by itself; the mask must say it")
        )

    def rewrite(self, node: ir.Node, emit: Emitter) -> list[ir.Value]:
        """Return output ``[B, S, N * D]``, present key and value ``[B, K, T, D]``."""
        q, k, v, mask, past_key, past_value = node.inputs
        heads, kv_heads = int_attribute(node, "q_num_heads"), int_attribute(node, "kv_num_heads")
        head_dim, group = last_dim(q) // heads, heads // kv_heads
        key = emit.op("Concat", past_key, self._heads(k, kv_heads, head_dim, emit), axis=2)
        value = emit.op("Concat", past_value, self._heads(v, kv_heads, head_dim, emit), axis=2)
        grouped = emit.op("Reshape", self._heads(q, heads, head_dim, emit), emit.ints(0, kv_heads, -1, head_dim))
        dtype = dtype_of(q)
        # Queries are scaled, not scores: unscaled scores leave float16's range first.
        scaled = emit.op("Mul", grouped, emit.scalar(head_dim**-0.5, dtype))
        scores = emit.op("MatMul", scaled, emit.op("Transpose", key, perm=[0, 1, 3, 2]))
        chances = self._softmax(scores, self._tiled(mask, group, emit), dtype, emit)
        mixed = emit.op("Reshape", emit.op("MatMul", chances, value), emit.ints(0, heads, -1, head_dim))
        together = emit.op("Transpose", mixed, perm=[0, 2, 1, 3])
        return [emit.op("Reshape", together, emit.ints(0, 0, heads * head_dim)), key, value]

    def _heads(self, x: ir.Value | None, heads: int, head_dim: int, emit: Emitter) -> ir.Value:
        """``[B, S, heads * D] -> [B, heads, S, D]``."""
        return emit.op("Transpose", emit.op("Reshape", x, emit.ints(0, 0, heads, head_dim)), perm=[0, 2, 1, 3])

    def _tiled(self, mask: ir.Value | None, group: int, emit: Emitter) -> ir.Value:
        """The mask once for each query head of a group, ``[B, 1, G * S, T]``; shared by all layers."""
        key = ("tiled", mask, group)
        if key not in emit.shared:
            assert mask is not None
            emit.shared[key] = emit.op("Concat", *([mask] * group), axis=2) if group > 1 else mask
        return emit.shared[key]

    def _softmax(self, scores: ir.Value, mask: ir.Value, dtype: ir.DataType, emit: Emitter) -> ir.Value:
        wide = dtype == ir.DataType.FLOAT
        scores = scores if wide else emit.op("Cast", scores, to=int(ir.DataType.FLOAT))
        # Not -inf: a row of nothing else would be NaN behind the softmax.
        lowest = emit.scalar(-3.0e38, ir.DataType.FLOAT)
        chances = emit.op("Softmax", emit.op("Where", mask, scores, lowest), axis=LAST)
        return chances if wide else emit.op("Cast", chances, to=int(dtype))
