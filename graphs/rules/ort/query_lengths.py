"""Rows of one call with different numbers of tokens: the program is told how many each has, and counts none itself.

ONNX Runtime 1.32 reads ``query_seqlens`` int32 ``[B]``: a row's first so many of S columns are its own, behind whatever
it has in the cache; 0 leaves it as it is. Older versions refuse the input.
"""

from __future__ import annotations

import onnx_ir as ir

from glm_export.graphs.rewriter import MATCHED, NOT_MINE, Emitter, MatchResult, refused
from glm_export.graphs.rules.ort import new_tokens
from glm_export.spec.signature import QUERY_LENGTHS

PLACE = 16
"""Which input of the operator it is."""
LAST_AXIS = 1


class AttentionToldLengths:
    """``GroupQueryAttention(...)`` becomes ``GroupQueryAttention(..., query_seqlens)``."""

    name = "told_lengths"

    def matches(self, node: ir.Node) -> MatchResult:
        """One that sees what stands before it, and nothing else."""
        if node.op_type != "GroupQueryAttention":
            return NOT_MINE
        causal = node.attributes.get("causal")
        return refused("it is not causal") if causal is not None and not causal.as_int() else MATCHED

    def rewrite(self, node: ir.Node, emit: Emitter) -> list[ir.Value]:
        """Return output, present key and value."""
        inputs = [*node.inputs, *[None] * (PLACE - len(node.inputs)), emit.inputs[QUERY_LENGTHS]]
        return emit.again(node, *inputs)


class NewTokensTold:
    """``ReduceSum(Cast(Equal(ids, ids)))``, S for every row, becomes each row's own number.

    What reads it, the last token's index and positions beside the attention, is right then for every row; of a row
    without tokens, nothing is read.
    """

    name = "told_new_tokens"

    def matches(self, node: ir.Node) -> MatchResult:
        """What :mod:`new_tokens` made."""
        return MATCHED if new_tokens.is_count(node) else NOT_MINE

    def rewrite(self, node: ir.Node, emit: Emitter) -> list[ir.Value]:
        """Return int64 ``[B, 1]``."""
        del node
        told = emit.op("Cast", emit.inputs[QUERY_LENGTHS], to=new_tokens.INT64)
        return [emit.op("Unsqueeze", told, emit.ints(LAST_AXIS))]
