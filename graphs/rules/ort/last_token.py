"""The last token, or the last few, of rows padded on the right: told, or counted from their mask."""

from __future__ import annotations

import onnx_ir as ir

from glm_export.graphs.queries import LAST
from glm_export.graphs.rewriter import MATCHED, NOT_MINE, Emitter, MatchResult, refused
from glm_export.graphs.rules.ort import new_tokens
from glm_export.spec.signature import ATTENTION_MASK, LAST_TOKEN_IDS, LOGITS, RECENT, RECENT_TOKENS


class LastTokenOfEachRow:
    """With rows padded on the right the last token is not the last column.

    ``Slice(x, [-1:])`` becomes ``GatherND(x, min(real tokens, S) - 1)``; a prefix family's mask says nothing of
    lengths, so there the program is told: ``GatherND(x, last_token_ids)``. Where the program's logits are those of the
    last few, K = min(S, 17) columns are gathered: of a row with n tokens those from max(n - 17, 0) on.
    """

    name = "last_token"

    def matches(self, node: ir.Node) -> MatchResult:
        """The slice before the head."""
        if node.op_type != "Slice":
            return NOT_MINE
        readers = [use.node for use in node.outputs[0].uses()]
        if [reader.op_type for reader in readers] != ["MatMul"]:
            return NOT_MINE
        axes = {value.name: len(value.shape or ()) for value in node.graph.inputs} if node.graph else {}
        counted = axes.get(ATTENTION_MASK) == 2
        return MATCHED if counted or LAST_TOKEN_IDS in axes else refused("nothing says where rows end")

    def rewrite(self, node: ir.Node, emit: Emitter) -> list[ir.Value]:
        """``[B, S, H] -> [B, 1, H]``, or ``[B, K, H]``."""
        hidden = node.inputs[0]
        if LAST_TOKEN_IDS in emit.inputs and _tells_recent(node):
            last = emit.op("Unsqueeze", emit.inputs[LAST_TOKEN_IDS], emit.ints(1))
            index = self._recent(emit, emit.op("Add", last, emit.ints(1)))
            return [emit.op("GatherND", hidden, emit.op("Unsqueeze", index, emit.ints(LAST)), batch_dims=1)]
        if LAST_TOKEN_IDS in emit.inputs:
            told = emit.op("Unsqueeze", emit.inputs[LAST_TOKEN_IDS], emit.ints(1, LAST))
            return [emit.op("GatherND", hidden, told, batch_dims=1)]
        real = emit.op("ReduceSum", emit.inputs[ATTENTION_MASK], emit.ints(1), keepdims=1)
        # In a prefill all real tokens are queries; later the last query of a row is its last token.
        own = emit.op("Min", real, new_tokens.count(emit))
        index = self._recent(emit, own) if _tells_recent(node) else emit.op("Sub", own, emit.ints(1))
        return [emit.op("GatherND", hidden, emit.op("Unsqueeze", index, emit.ints(LAST)), batch_dims=1)]

    @staticmethod
    def _recent(emit: Emitter, own_B1: ir.Value) -> ir.Value:
        """Columns ``[B, K]``. A row with fewer than K tokens has padding behind them, as everywhere."""
        first_B1 = emit.op("Max", emit.op("Sub", own_B1, emit.ints(RECENT_TOKENS)), emit.ints(0))
        # Not Range: its length would be the host's to know.
        counted_BS = emit.op("CumSum", new_tokens.ones(emit), emit.scalar(1, ir.DataType.INT64), exclusive=1)
        counted_BK = emit.op("Slice", counted_BS, emit.ints(0), emit.ints(RECENT_TOKENS), emit.ints(1))
        return emit.op("Add", first_B1, counted_BK)


def _tells_recent(node: ir.Node) -> bool:
    logits = next((value for value in node.graph.outputs if value.name == LOGITS), None) if node.graph else None
    return logits is not None and logits.shape is not None and logits.shape[1] == RECENT
