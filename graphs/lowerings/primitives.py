"""Canonical operators in the words of opset 17: products, sums, shapes, softmax.

Heads that share keys are grouped by reshaping the queries; the cache is never copied for them.
Shapes: B batch, S query, T key, N query heads, K key-value heads, G = N / K, D head size, R rotated channels.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from glm_export.graphs.lowerings.reading import LAST, int_attribute, last_dim
from glm_export.graphs.rule import Emitter


def _dtype(value: ir.Value | None) -> ir.DataType:
    assert value is not None
    assert value.dtype is not None
    return value.dtype


class RotaryToPrimitives:
    """``RotaryEmbedding(x, cos, sin, positions)`` -> ``x`` cut into pairs, turned, and put together.

    The angles are looked up once for each table and set of positions, and shared by all layers.
    """

    name = "rotary"

    def matches(self, node: ir.Node) -> str | None:
        """Three-dimensional inputs with a known number of heads."""
        if node.op_type != "RotaryEmbedding":
            return ""
        return None if int_attribute(node, "num_heads") else "num_heads is not given"

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
        turned_first = emit.op("Sub", emit.op("Mul", first, cos), emit.op("Mul", second, sin))
        turned_second = emit.op("Add", emit.op("Mul", second, cos), emit.op("Mul", first, sin))
        turned = emit.op("Concat", turned_first, turned_second, axis=LAST)
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


class AttentionToPrimitives:
    """``Attention(q, k, v, mask, past)`` -> two ``MatMul`` and a ``Softmax`` over past and new keys.

    Scores and softmax are computed in float32 in every dtype, as the operator does.
    """

    name = "attention"

    def matches(self, node: ir.Node) -> str | None:
        """Packed heads, an explicit mask, and a cache."""
        if node.op_type != "Attention":
            return ""
        if len(node.inputs) != 6 or any(value is None for value in node.inputs):
            return f"expected q, k, v, mask and the two pasts, found {len(node.inputs)} inputs"
        return None if not int_attribute(node, "is_causal") else "it is causal by itself; the mask must say it"

    def rewrite(self, node: ir.Node, emit: Emitter) -> list[ir.Value]:
        """Return output ``[B, S, N * D]``, present key and value ``[B, K, T, D]``."""
        q, k, v, mask, past_key, past_value = node.inputs
        heads, kv_heads = int_attribute(node, "q_num_heads"), int_attribute(node, "kv_num_heads")
        head_dim, group = last_dim(q) // heads, heads // kv_heads
        key = emit.op("Concat", past_key, self._heads(k, kv_heads, head_dim, emit), axis=2)
        value = emit.op("Concat", past_value, self._heads(v, kv_heads, head_dim, emit), axis=2)
        grouped = emit.op("Reshape", self._heads(q, heads, head_dim, emit), emit.ints(0, kv_heads, -1, head_dim))
        dtype = _dtype(q)
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
        lowest = emit.scalar(-3.0e38, ir.DataType.FLOAT)
        chances = emit.op("Softmax", emit.op("Where", mask, scores, lowest), axis=LAST)
        return chances if wide else emit.op("Cast", chances, to=int(dtype))


class RmsNormToPrimitives:
    """``RMSNormalization(x, weight)`` -> ``x / sqrt(mean(x * x) + eps) * weight``, in float32 but for the weight."""

    name = "rms_norm"

    def matches(self, node: ir.Node) -> str | None:
        """Over the last axis."""
        if node.op_type != "RMSNormalization":
            return ""
        return None if int_attribute(node, "axis", LAST) == LAST else "it normalizes over more than the last axis"

    def rewrite(self, node: ir.Node, emit: Emitter) -> list[ir.Value]:
        """Return the normed ``x``."""
        x, weight = node.inputs
        dtype, single = _dtype(x), ir.DataType.FLOAT
        wide = x if dtype == single else emit.op("Cast", x, to=int(single))
        mean = emit.op("ReduceMean", emit.op("Mul", wide, wide), axes=[LAST], keepdims=1)
        epsilon = emit.scalar(node.attributes["epsilon"].as_float(), single)
        normed = emit.op("Div", wide, emit.op("Sqrt", emit.op("Add", mean, epsilon)))
        normed = normed if dtype == single else emit.op("Cast", normed, to=int(dtype))
        return [emit.op("Mul", normed, weight)]


class GeluToPrimitives:
    """``Gelu(x)`` -> ``x / 2 * (1 + erf(x / sqrt(2)))``, or its tanh approximation."""

    name = "gelu"

    def matches(self, node: ir.Node) -> str | None:
        """Any."""
        return None if node.op_type == "Gelu" else ""

    def rewrite(self, node: ir.Node, emit: Emitter) -> list[ir.Value]:
        """Return the activation."""
        (x,) = node.inputs
        dtype = _dtype(x)

        def times(value: ir.Value | None, factor: float) -> ir.Value:
            return emit.op("Mul", value, emit.scalar(factor, dtype))

        approximate = node.attributes["approximate"].as_string() if "approximate" in node.attributes else "none"
        if approximate == "tanh":
            cube = emit.op("Mul", emit.op("Mul", x, x), x)
            curve = emit.op("Tanh", times(emit.op("Add", x, times(cube, 0.044715)), math.sqrt(2 / math.pi)))
        else:
            curve = emit.op("Erf", times(x, math.sqrt(0.5)))
        return [emit.op("Mul", times(x, 0.5), emit.op("Add", curve, emit.scalar(1.0, dtype)))]


class SplitIntoSizes:
    """``Split(x, num_outputs=n)`` (opset 18) -> ``Split(x, sizes)``."""

    name = "split"

    def matches(self, node: ir.Node) -> str | None:
        """Those that count outputs instead of naming sizes."""
        return None if node.op_type == "Split" and "num_outputs" in node.attributes else ""

    def rewrite(self, node: ir.Node, emit: Emitter) -> list[ir.Value]:
        """Return the parts."""
        (x,) = node.inputs
        count = len(node.outputs)
        sizes = emit.ints(*([last_dim(x) // count] * count))
        return list(emit.many("Split", x, sizes, outputs=count, axis=LAST))
