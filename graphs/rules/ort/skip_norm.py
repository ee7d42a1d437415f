"""A norm and the sum it reads in one operator."""

from __future__ import annotations

import onnx_ir as ir

from glm_export.graphs.queries import producer_of
from glm_export.graphs.rewriter import MATCHED, MICROSOFT, NOT_MINE, Emitter, MatchResult, refused

FUSED_NORM = {"RMSNormalization": "SkipSimplifiedLayerNormalization", "LayerNormalization": "SkipLayerNormalization"}


class AddAndNorm:
    """The residual's sum and the norm that reads it in one pass.

    ``Add(a, b) -> s; RMSNormalization(s) -> n`` becomes ``SkipSimplifiedLayerNormalization(a, b) -> n, s``, and
    ``LayerNormalization`` likewise ``SkipLayerNormalization``.
    """

    name = "skip_norm"

    def matches(self, node: ir.Node) -> MatchResult:
        """A norm over the last axis of a sum of two activations of one shape."""
        if node.op_type not in FUSED_NORM:
            return NOT_MINE
        add = producer_of(node.inputs[0], "Add")
        if add is None:
            return refused("it norms no sum")
        if any(value is None or value.is_initializer() for value in add.inputs):
            return refused("it norms a bias's sum")
        return MATCHED

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
