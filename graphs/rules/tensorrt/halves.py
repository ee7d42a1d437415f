"""A product's two halves, the gate and what it lets through, taken apart without changing the product."""

from __future__ import annotations

import onnx_ir as ir

from glm_export.graphs.queries import LAST, int_attribute, last_dim, producer_of
from glm_export.graphs.rewriter import MATCHED, NOT_MINE, Emitter, MatchResult, refused


class HalvesOnAnAxisOfTheirOwn:
    """Halves become an axis, which is split: the channels of the product stay together.

    ``gate, up = Split(x @ weight, axis=-1)`` becomes ``Reshape([..., 2, F]) -> Split(axis=-2) -> Squeeze, Squeeze``.

    A split of channels TensorRT-RTX 1.7 pulls into the product in the profile for prompts, and joins both products
    again: over a weight that is no longer the other profile's, so that the plan holds it twice (1.54 times
    ChatGLM2-6B's float16 weights, and twice as long to build). As an axis they are cut where they are multiplied.
    """

    name = "halves"

    def matches(self, node: ir.Node) -> MatchResult:
        """A split into two equal parts of a product's channels."""
        if node.op_type != "Split" or int_attribute(node, "num_outputs") != 2:
            return NOT_MINE
        x = node.inputs[0]
        assert x is not None
        if producer_of(x, "MatMul") is None and producer_of(x, "Add") is None:
            return refused("it is not a product that is split")
        axis = int_attribute(node, "axis")
        if x.shape is None or axis not in (LAST, len(x.shape) - 1):
            return refused("not its channels are split")
        return refused("the halves are not equal") if last_dim(x) % 2 else MATCHED

    def rewrite(self, node: ir.Node, emit: Emitter) -> list[ir.Value]:
        """Return the halves, ``[..., F]`` each."""
        (x,) = node.inputs
        assert x is not None
        assert x.shape is not None
        leading = len(x.shape) - 1
        apart = emit.op("Reshape", x, emit.ints(*[0] * leading, 2, last_dim(x) // 2))
        halves = emit.many("Split", apart, outputs=2, axis=-2, num_outputs=2)
        return [emit.op("Squeeze", half, emit.ints(-2)) for half in halves]
