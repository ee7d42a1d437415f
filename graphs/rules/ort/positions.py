"""Positions counted from lengths, for rotations that attention cannot do itself."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from glm_export.graphs.queries import last_dim
from glm_export.graphs.rewriter import MATCHED, NOT_MINE, Emitter, MatchResult
from glm_export.graphs.rules.ort import fuses_rotation, new_tokens
from glm_export.spec.signature import ATTENTION_MASK


class PositionsFromLengths:
    """Rotations that attention cannot do itself read positions counted from ``attention_mask``.

    ``RotaryEmbedding(x, cos, sin, position_ids)`` keeps all but its positions: a row's new tokens follow the real ones
    before them.
    """

    name = "positions"

    def matches(self, node: ir.Node) -> MatchResult:
        """Tables too narrow for the fused operator."""
        if node.op_type != "RotaryEmbedding" or len(node.inputs) != 4:
            return NOT_MINE
        return NOT_MINE if fuses_rotation(last_dim(node.inputs[1])) else MATCHED

    def rewrite(self, node: ir.Node, emit: Emitter) -> list[ir.Value]:
        """Return the rotated ``x``."""
        if ("positions",) not in emit.shared:
            real = emit.op("ReduceSum", emit.inputs[ATTENTION_MASK], emit.ints(1), keepdims=1)
            # A prefill's padding makes this negative; it starts at 0.
            first = emit.op("Max", emit.op("Sub", real, new_tokens.count(emit)), emit.ints(0))
            steps = emit.op("CumSum", new_tokens.ones(emit), emit.scalar(1, ir.DataType.INT64), exclusive=1)
            emit.shared["positions",] = emit.op("Add", first, steps)
        x, cos, sin, _ = node.inputs
        kept: dict[str, Any] = {name: attribute.as_int() for name, attribute in node.attributes.items()}
        return [emit.op("RotaryEmbedding", x, cos, sin, emit.shared["positions",], **kept)]
