"""Canonical operators in ONNX Runtime's fused ones: attention with its rotation and cache, norms with their residual.

Shapes: B batch, S query, T columns of the cache in use, N query heads, K key-value heads, D head size, H hidden size.
"""

from __future__ import annotations

import onnx_ir as ir

from glm_export.graphs.queries import int_attribute, last_dim, producer_of
from glm_export.graphs.rewriter import MATCHED, MICROSOFT, NOT_MINE, Emitter, MatchResult, refused
from glm_export.graphs.rules.ort import fuses_rotation
from glm_export.spec.signature import ATTENTION_MASK

INT32 = int(ir.DataType.INT32)


def as_projected(*qkv: ir.Value | None) -> tuple[ir.Value | None, ...]:
    """Queries, keys and values packed as one product wrote them, where nothing stands between; else as they are."""
    split = producer_of(qkv[0], "Split")
    if split is not None and all(made is value for made, value in zip(split.outputs, qkv, strict=True)):
        return split.inputs[0], None, None
    return qkv


class AttentionToGroupQuery:
    """Rotation of q and k, attention and cache in one operator.

    ``Split -> RotaryEmbedding(q), RotaryEmbedding(k) -> Attention(q, k, v, mask, past)``
    becomes ``GroupQueryAttention(qkv, past, lengths, total, cos, sin)``: packed as the projection wrote them where
    nothing stands between it and the rotation, else q, k and v apart.

    The operator counts positions itself, from each row's length; so rows are padded on the right. It is causal. A row
    whose first column is padding gets a length it refuses: its answers would be wrong.
    Where it cannot rotate (:func:`fuses_rotation`), the rotation stays before it.
    """

    name = "attention"

    def matches(self, node: ir.Node) -> MatchResult:
        """Queries and keys come straight from one rotation each, of the same kind."""
        if node.op_type != "Attention":
            return NOT_MINE
        rotaries = [producer_of(value, "RotaryEmbedding") for value in node.inputs[:2]]
        if rotaries[0] is None or rotaries[1] is None:
            return refused("queries or keys are not rotated right before")
        if len(rotaries[0].inputs) != 4 or rotaries[0].inputs[3] is None:
            return refused("the rotation has angles of its own instead of positions in a table")
        if any(rotaries[0].inputs[i] is not rotaries[1].inputs[i] for i in (1, 2, 3)):
            return refused("queries and keys turn by different tables or positions")
        return MATCHED

    def rewrite(self, node: ir.Node, emit: Emitter) -> list[ir.Value]:
        """Return output ``[B, S, N * D]`` and the two presents ``[B, K, T, D]``."""
        q, k, v, _, past_key, past_value = node.inputs
        rotary, rotary_key = producer_of(q, "RotaryEmbedding"), producer_of(k, "RotaryEmbedding")
        assert rotary is not None
        assert rotary_key is not None
        x_q, cos, sin, _ = rotary.inputs
        fused = fuses_rotation(last_dim(cos))
        projected: tuple[ir.Value | None, ...] = (x_q, rotary_key.inputs[0], v) if fused else (q, k, v)
        projected = as_projected(*projected)
        lengths, total = self._lengths(emit)
        rotation = {"do_rotary": 1, "rotary_interleaved": int_attribute(rotary, "interleaved")} if fused else {}
        return list(
            emit.many(
                "GroupQueryAttention", *projected, past_key, past_value, lengths, total,
                *((cos, sin) if fused else ()), outputs=3, domain=MICROSOFT,
                num_heads=int_attribute(node, "q_num_heads"), kv_num_heads=int_attribute(node, "kv_num_heads"),
                **rotation,
            )
        )  # fmt: skip

    def _lengths(self, emit: Emitter) -> tuple[ir.Value, ir.Value]:
        """Index of each row's last token int32 ``[B]``, and the columns in use, an int32 scalar; once per program."""
        if ("lengths",) not in emit.shared:
            mask = emit.inputs[ATTENTION_MASK]
            first = emit.op("Gather", mask, emit.op("Squeeze", emit.ints(0)), axis=1)
            real = emit.op("Mul", emit.op("ReduceSum", mask, emit.ints(1), keepdims=0), first)
            emit.shared["lengths",] = emit.op("Cast", emit.op("Sub", real, emit.ints(1)), to=INT32)
            columns = emit.op("Squeeze", emit.op("Shape", mask, start=1, end=2))
            emit.shared["total",] = emit.op("Cast", columns, to=INT32)
        return emit.shared["lengths",], emit.shared["total",]
