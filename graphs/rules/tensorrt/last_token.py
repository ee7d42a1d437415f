"""The last token of rows padded on the right, by an index the caller gives."""

from __future__ import annotations

import onnx_ir as ir

from glm_export.graphs.queries import producer_of
from glm_export.graphs.rewriter import MATCHED, NOT_MINE, Emitter, MatchResult
from glm_export.spec.signature import (
    LAST_TOKEN_IDS,
)


class LastTokenByIndex:
    """With rows padded on the right the last token is not the last column, and the caller says which it is.

    ``Slice(Slice(x, [:]), [-1:])`` becomes ``GatherND(x, last_token_ids)``.
    """

    name = "last_token"

    def matches(self, node: ir.Node) -> MatchResult:
        """The slice before the head."""
        if node.op_type != "Slice" or [use.node.op_type for use in node.outputs[0].uses()] != ["MatMul"]:
            return NOT_MINE
        return MATCHED

    def rewrite(self, node: ir.Node, emit: Emitter) -> list[ir.Value]:
        """``[B, S, H] -> [B, 1, H]``."""
        rows = producer_of(node.inputs[0], "Slice")
        hidden = rows.inputs[0] if rows is not None else node.inputs[0]
        index = emit.op("Unsqueeze", emit.inputs[LAST_TOKEN_IDS], emit.ints(1, 2))
        return [emit.op("GatherND", hidden, index, batch_dims=1)]
