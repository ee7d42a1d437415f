"""Keys and values kept as int8 between calls, each layer's with a scale for keys and one for values.

Shapes: B batch, S new tokens, P past, T = P + S, N query heads, K key-value heads, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from glm_export.graphs.queries import int_attribute, last_dim
from glm_export.graphs.rewriter import MATCHED, NOT_MINE, Emitter, MatchResult, refused
from glm_export.spec.signature import CACHE_LENGTH_AXIS, past_names

PAST = past_names(0)[0].split(".")[0]


@dataclass(frozen=True, slots=True)
class _CacheOfIntegers:
    """What the rules share: new values are rounded, put behind the past ones, and read as floats."""

    scale_of: dict[str, float]
    dtype: str
    name: str = "integer cache"

    def _extended(self, past: ir.Value | None, new: ir.Value, emit: Emitter) -> tuple[ir.Value, ir.Value]:
        """Present ``[B, K, T, D]`` as int8, and as floats."""
        assert past is not None
        assert past.name is not None
        dtype = new.dtype or ir.DataType[{"float32": "FLOAT", "float16": "FLOAT16"}[self.dtype]]
        scale = emit.array(f"{past.name}.scale", self.scale_of[past.name], dtype)
        zero = emit.scalar(0, ir.DataType.INT8)
        present = emit.op("Concat", past, emit.op("QuantizeLinear", new, scale, zero), axis=CACHE_LENGTH_AXIS)
        return present, emit.op("DequantizeLinear", present, scale, zero)


class ConcatOfIntegers(_CacheOfIntegers):
    """``Concat(past, new) -> present`` becomes ``Concat(past, QuantizeLinear(new)) -> present``, read dequantized."""

    def matches(self, node: ir.Node) -> MatchResult:
        """The growth of a cache."""
        past = node.inputs[0] if node.op_type == "Concat" else None
        return MATCHED if past is not None and past.name in self.scale_of else NOT_MINE

    def rewrite(self, node: ir.Node, emit: Emitter) -> list[ir.Value]:
        """Return the present as int8; readers inside the program get floats."""
        past, new = node.inputs
        assert new is not None
        present, values = self._extended(past, new, emit)
        for use in list(node.outputs[0].uses()):
            use.node.replace_input_with(use.idx, values)
        return [present]


class AttentionOfIntegers(_CacheOfIntegers):
    """Attention over a cache of integers, with packed heads.

    ``Attention(q, k, v, mask, past) -> output, present`` becomes::

        k -> Reshape, Transpose -> QuantizeLinear -> Concat(past, .) -> DequantizeLinear ---> Attention(q, ., ., mask)

    and v likewise; ``Concat`` makes the present.
    """

    def matches(self, node: ir.Node) -> MatchResult:
        """A mask and a cache."""
        if node.op_type != "Attention":
            return NOT_MINE
        return (
            MATCHED
            if len(node.inputs) == 6 and all(node.inputs)
            else refused("expected q, k, v, mask and the two pasts")
        )

    def rewrite(self, node: ir.Node, emit: Emitter) -> list[ir.Value]:
        """Return output ``[B, S, N * D]``, present key and value int8 ``[B, K, T, D]``."""
        q, k, v, mask, *pasts = node.inputs
        heads, kv_heads = int_attribute(node, "q_num_heads"), int_attribute(node, "kv_num_heads")
        head_dim = last_dim(q) // heads
        query = _heads(q, heads, head_dim, emit)
        (key, keys), (value, values) = (
            self._extended(past, _heads(new, kv_heads, head_dim, emit), emit)
            for past, new in zip(pasts, (k, v), strict=True)
        )
        mixed = emit.op("Attention", query, keys, values, mask)
        together = emit.op("Transpose", mixed, perm=[0, 2, 1, 3])
        return [emit.op("Reshape", together, emit.ints(0, 0, heads * head_dim)), key, value]


def _heads(x: ir.Value | None, heads: int, head_dim: int, emit: Emitter) -> ir.Value:
    """``[B, S, heads * D] -> [B, heads, S, D]``."""
    return emit.op("Transpose", emit.op("Reshape", x, emit.ints(0, 0, heads, head_dim)), perm=[0, 2, 1, 3])
