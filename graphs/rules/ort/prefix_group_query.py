"""Attention of prefix families in ONNX Runtime's fused operator: who sees whom is a bias, the cache one buffer.

Shapes: B batch, S new tokens, T columns that are spoken of, N query heads, K key-value heads, D head size.
"""

from __future__ import annotations

import onnx_ir as ir

from glm_export.graphs.queries import int_attribute
from glm_export.graphs.rewriter import MATCHED, MICROSOFT, NOT_MINE, Emitter, MatchResult, refused
from glm_export.graphs.rules.ort import new_tokens
from glm_export.graphs.rules.ort.group_query_attention import as_projected
from glm_export.spec.signature import ATTENTION_MASK, WRITE_INDICES

INT32, INT64 = int(ir.DataType.INT32), ir.DataType.INT64


class PrefixAttentionToGroupQuery:
    """Attention that is told who sees whom, over one buffer, every row written where it is told.

    ``Attention(q, k, v, mask, past)`` becomes ``GroupQueryAttention<causal=0>(q, k, v, past, last, total, bias)``:
    packed where nothing stands between product and attention. ``last = write_indices + S - 1`` is the column of each
    row's last query, padding included: what padding writes is written over.

    ``bias`` is 0 where ``attention_mask`` is true and on the column a query is written to, else minus infinity: every
    query sees itself, as in the canonical program, so no row of scores is empty. It is made once for all layers.
    """

    name = "prefix_attention"

    def matches(self, node: ir.Node) -> MatchResult:
        """In a program that is told where rows are written."""
        if node.op_type != "Attention" or node.graph is None:
            return NOT_MINE
        if all(value.name != WRITE_INDICES for value in node.graph.inputs):
            return NOT_MINE
        if len(node.inputs) != 6 or any(value is None for value in node.inputs):
            return refused(f"expected q, k, v, mask and the two pasts, found {len(node.inputs)} inputs")
        if int_attribute(node, "is_causal"):
            return refused("it is causal by itself; the mask must say it")
        return MATCHED

    def rewrite(self, node: ir.Node, emit: Emitter) -> list[ir.Value]:
        """Return output ``[B, S, N * D]`` and the two presents, the buffers they were."""
        q, k, v, _, past_key, past_value = node.inputs
        assert q is not None
        assert q.dtype is not None
        last, total = self._columns(emit)
        return list(
            emit.many(
                "GroupQueryAttention",
                *as_projected(q, k, v),
                past_key,
                past_value,
                last,
                total,
                None,
                None,
                None,
                self._bias(q.dtype, emit),
                outputs=3,
                domain=MICROSOFT,
                num_heads=int_attribute(node, "q_num_heads"),
                kv_num_heads=int_attribute(node, "kv_num_heads"),
                causal=0,
            )
        )

    def _columns(self, emit: Emitter) -> tuple[ir.Value, ir.Value]:
        """Column of each row's last query int32 ``[B]``, and how many are spoken of, a scalar; once per program."""
        if ("last",) not in emit.shared:
            new = emit.op("ReduceSum", new_tokens.ones(emit), emit.ints(1), keepdims=0)
            behind = emit.op("Add", emit.inputs[WRITE_INDICES], new)
            emit.shared["last",] = emit.op("Cast", emit.op("Sub", behind, emit.ints(1)), to=INT32)
            width = emit.op("Squeeze", emit.op("Shape", emit.inputs[ATTENTION_MASK], start=3, end=4))
            emit.shared["width",] = width
            emit.shared["total",] = emit.op("Cast", width, to=INT32)
        return emit.shared["last",], emit.shared["total",]

    def _bias(self, dtype: ir.DataType, emit: Emitter) -> ir.Value:
        """Of every score, ``[B, 1, S, T]``; once per program."""
        if ("bias",) not in emit.shared:
            steps = emit.op("CumSum", new_tokens.ones(emit), emit.scalar(1, INT64), exclusive=1)
            own = emit.op("Add", emit.op("Unsqueeze", emit.inputs[WRITE_INDICES], emit.ints(1)), steps)
            columns = emit.op("Range", emit.scalar(0, INT64), emit.shared["width",], emit.scalar(1, INT64))
            itself = emit.op("Equal", columns, emit.op("Unsqueeze", own, emit.ints(1, 3)))
            seen = emit.op("Or", emit.inputs[ATTENTION_MASK], itself)
            zero, hidden = emit.scalar(0, dtype), emit.scalar(float("-inf"), dtype)
            emit.shared["bias",] = emit.op("Where", seen, zero, hidden)
        return emit.shared["bias",]
