"""Canonical operators in ONNX Runtime's fused ones: attention with its rotation and cache, norms with their residual.

Shapes: B batch, S query, T columns of the cache in use, N query heads, K key-value heads, D head size, H hidden size.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from glm_export.graphs.lowerings.reading import LAST, int_attribute, last_dim, producer_of
from glm_export.graphs.rule import MICROSOFT, Emitter
from glm_export.signature import ATTENTION_MASK, INPUT_IDS

TABLE_WIDTH_MULTIPLE = 8
INT32 = int(ir.DataType.INT32)
FUSED_NORM = {"RMSNormalization": "SkipSimplifiedLayerNormalization", "LayerNormalization": "SkipLayerNormalization"}


def fuses_rotation(table_width: int) -> bool:
    """Whether GroupQueryAttention takes tables ``[M, table_width]``; ONNX Runtime 1.31 wants a multiple of 8."""
    return table_width % TABLE_WIDTH_MULTIPLE == 0


class PositionsFromLengths:
    """Rotations that attention cannot do itself read positions counted from ``attention_mask``.

    ``RotaryEmbedding(x, cos, sin, position_ids)`` keeps all but its positions: a row's new tokens follow the real ones
    before them.
    """

    name = "positions"

    def matches(self, node: ir.Node) -> str | None:
        """Tables too narrow for the fused operator."""
        if node.op_type != "RotaryEmbedding" or len(node.inputs) != 4:
            return ""
        return "" if fuses_rotation(last_dim(node.inputs[1])) else None

    def rewrite(self, node: ir.Node, emit: Emitter) -> list[ir.Value]:
        """Return the rotated ``x``."""
        if ("positions",) not in emit.shared:
            real = emit.op("ReduceSum", emit.inputs[ATTENTION_MASK], emit.ints(1), keepdims=1)
            queries = emit.op("Shape", emit.inputs[INPUT_IDS], start=1, end=2)
            # A prefill's padding makes this negative; it starts at 0.
            first = emit.op("Max", emit.op("Sub", real, queries), emit.ints(0))
            zero, one = (emit.op("Squeeze", emit.ints(value)) for value in (0, 1))
            steps = emit.op("Range", zero, emit.op("Squeeze", queries), one)
            emit.shared["positions",] = emit.op("Add", first, steps)
        x, cos, sin, _ = node.inputs
        kept: dict[str, Any] = {name: attribute.as_int() for name, attribute in node.attributes.items()}
        return [emit.op("RotaryEmbedding", x, cos, sin, emit.shared["positions",], **kept)]


class AttentionToGroupQuery:
    """Rotation of q and k, attention and cache in one operator.

    ``Split -> RotaryEmbedding(q), RotaryEmbedding(k) -> Attention(q, k, v, mask, past)``
    becomes ``GroupQueryAttention(qkv, past, lengths, total, cos, sin)``: packed as the projection wrote them where
    nothing stands between it and the rotation, else q, k and v apart.

    The operator counts positions itself, from each row's length; so rows are padded on the right. It is causal.
    Where it cannot rotate (:func:`fuses_rotation`), the rotation stays before it.
    """

    name = "attention"

    def matches(self, node: ir.Node) -> str | None:
        """Queries and keys come straight from one rotation each, of the same kind."""
        if node.op_type != "Attention":
            return ""
        turns = [producer_of(value, "RotaryEmbedding") for value in node.inputs[:2]]
        if turns[0] is None or turns[1] is None:
            return "queries or keys are not rotated right before"
        if len(turns[0].inputs) != 4 or turns[0].inputs[3] is None:
            return "the rotation has angles of its own instead of positions in a table"
        if any(turns[0].inputs[i] is not turns[1].inputs[i] for i in (1, 2, 3)):
            return "queries and keys turn by different tables or positions"
        return None

    def rewrite(self, node: ir.Node, emit: Emitter) -> list[ir.Value]:
        """Return output ``[B, S, N * D]`` and the two presents ``[B, K, T, D]``."""
        q, k, v, _, past_key, past_value = node.inputs
        turn, turn_key = producer_of(q, "RotaryEmbedding"), producer_of(k, "RotaryEmbedding")
        assert turn is not None
        assert turn_key is not None
        x_q, cos, sin, _ = turn.inputs
        fused = fuses_rotation(last_dim(cos))
        projected: tuple[ir.Value | None, ...] = (x_q, turn_key.inputs[0], v) if fused else (q, k, v)
        split = producer_of(x_q, "Split")
        if split is not None and all(made is value for made, value in zip(split.outputs, projected, strict=True)):
            projected = (split.inputs[0], None, None)
        lengths, total = self._lengths(emit)
        rotation = {"do_rotary": 1, "rotary_interleaved": int_attribute(turn, "interleaved")} if fused else {}
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
            real = emit.op("ReduceSum", mask, emit.ints(1), keepdims=0)
            emit.shared["lengths",] = emit.op("Cast", emit.op("Sub", real, emit.ints(1)), to=INT32)
            columns = emit.op("Squeeze", emit.op("Shape", mask, start=1, end=2))
            emit.shared["total",] = emit.op("Cast", columns, to=INT32)
        return emit.shared["lengths",], emit.shared["total",]


class AddAndNorm:
    """The residual's sum and the norm that reads it in one pass.

    ``Add(a, b) -> s; RMSNormalization(s) -> n`` becomes ``SkipSimplifiedLayerNormalization(a, b) -> n, s``, and
    ``LayerNormalization`` likewise ``SkipLayerNormalization``.
    """

    name = "skip_norm"

    def matches(self, node: ir.Node) -> str | None:
        """A norm over the last axis of a sum of two activations of one shape."""
        if node.op_type not in FUSED_NORM:
            return ""
        add = producer_of(node.inputs[0], "Add")
        if add is None:
            return "it norms no sum"
        if any(value is None or value.is_initializer() for value in add.inputs):
            return "it norms a bias's sum"
        return None

    def rewrite(self, node: ir.Node, emit: Emitter) -> list[ir.Value]:
        """Return the normed sum ``[B, S, H]``; readers of the sum get it from the same operator."""
        add = producer_of(node.inputs[0], "Add")
        assert add is not None
        normed, _, _, total = emit.many(
            FUSED_NORM[node.op_type], *add.inputs, *node.inputs[1:], outputs=4, domain=MICROSOFT,
            epsilon=node.attributes["epsilon"].as_float(),
        )  # fmt: skip
        emit.replaced.append((add.outputs[0], total))
        return [normed]


class LastTokenOfEachRow:
    """With rows padded on the right the last token is not the last column.

    ``Slice(x, [-1:])`` becomes ``GatherND(x, min(real tokens, S) - 1)``.
    """

    name = "last_token"

    def matches(self, node: ir.Node) -> str | None:
        """The slice before the head."""
        if node.op_type != "Slice":
            return ""
        readers = [use.node for use in node.outputs[0].uses()]
        if [reader.op_type for reader in readers] != ["MatMul"]:
            return ""
        # Prefix families are told who sees whom, and padded on the left: there the last column is the last token.
        masks = [value for value in node.graph.inputs if value.name == ATTENTION_MASK] if node.graph else []
        return None if masks and len(masks[0].shape or ()) == 2 else "rows are padded on the left"

    def rewrite(self, node: ir.Node, emit: Emitter) -> list[ir.Value]:
        """``[B, S, H] -> [B, 1, H]``."""
        hidden = node.inputs[0]
        real = emit.op("ReduceSum", emit.inputs[ATTENTION_MASK], emit.ints(1), keepdims=1)
        queries = emit.op("Shape", emit.inputs[INPUT_IDS], start=1, end=2)
        # In a prefill all real tokens are queries; later the last query of a row is its last token.
        index = emit.op("Sub", emit.op("Min", real, queries), emit.ints(1))
        return [emit.op("GatherND", hidden, emit.op("Unsqueeze", index, emit.ints(LAST)), batch_dims=1)]
