"""The last token of rows padded on the right."""

from __future__ import annotations

import onnx_ir as ir

from glm_export.graphs.queries import LAST
from glm_export.graphs.rewriter import MATCHED, NOT_MINE, Emitter, MatchResult, refused
from glm_export.graphs.rules.ort import new_tokens
from glm_export.spec.signature import ATTENTION_MASK


class LastTokenOfEachRow:
    """With rows padded on the right the last token is not the last column.

    ``Slice(x, [-1:])`` becomes ``GatherND(x, min(real tokens, S) - 1)``.
    """

    name = "last_token"

    def matches(self, node: ir.Node) -> MatchResult:
        """The slice before the head."""
        if node.op_type != "Slice":
            return NOT_MINE
        readers = [use.node for use in node.outputs[0].uses()]
        if [reader.op_type for reader in readers] != ["MatMul"]:
            return NOT_MINE
        # Prefix families are told who sees whom, and padded on the left: there the last column is the last token.
        masks = [value for value in node.graph.inputs if value.name == ATTENTION_MASK] if node.graph else []
        return MATCHED if masks and len(masks[0].shape or ()) == 2 else refused("rows are padded on the left")

    def rewrite(self, node: ir.Node, emit: Emitter) -> list[ir.Value]:
        """``[B, S, H] -> [B, 1, H]``."""
        hidden = node.inputs[0]
        real = emit.op("ReduceSum", emit.inputs[ATTENTION_MASK], emit.ints(1), keepdims=1)
        # In a prefill all real tokens are queries; later the last query of a row is its last token.
        index = emit.op("Sub", emit.op("Min", real, new_tokens.count(emit)), emit.ints(1))
        return [emit.op("GatherND", hidden, emit.op("Unsqueeze", index, emit.ints(LAST)), batch_dims=1)]
