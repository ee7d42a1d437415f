"""Split by sizes."""

from __future__ import annotations

import onnx_ir as ir

from glm_export.graphs.queries import LAST, last_dim
from glm_export.graphs.rewriter import MATCHED, NOT_MINE, Emitter, MatchResult


class SplitIntoSizes:
    """``Split(x, num_outputs=n)`` (opset 18) -> ``Split(x, sizes)``."""

    name = "split"

    def matches(self, node: ir.Node) -> MatchResult:
        """Those that count outputs instead of naming sizes."""
        return MATCHED if node.op_type == "Split" and "num_outputs" in node.attributes else NOT_MINE

    def rewrite(self, node: ir.Node, emit: Emitter) -> list[ir.Value]:
        """Return the parts."""
        (x,) = node.inputs
        count = len(node.outputs)
        sizes = emit.ints(*([last_dim(x) // count] * count))
        return list(emit.many("Split", x, sizes, outputs=count, axis=LAST))
