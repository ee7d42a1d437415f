"""Each token's own experts in one operator, instead of every expert for every token.

Shapes: X tokens, E experts, K experts a token, H hidden size, F width of an expert.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from glm_export.graphs.queries import dtype_of, int_attribute, producer_of
from glm_export.graphs.rewriter import MATCHED, MICROSOFT, NOT_MINE, Emitter, MatchResult, refused
from glm_export.spec.weight_formats import ExpertWeights, WeightFormats

STACK_RANK = 3
MOE, QMOE = "MoE", "QMoE"
# silu(gate) * up, with their rows in turn: the one layout that ONNX Runtime's CPU kernels take.
SWIGLU: dict[str, Any] = {
    "activation_type": "swiglu",
    "swiglu_fusion": 1,
    "activation_alpha": 1.0,
    "activation_beta": 0.0,
}
SMALLEST_WEIGHT = {ir.DataType.FLOAT16: 2.0**-14}
"""What a weight of 0 counts as before its logarithm is taken: nothing beside those that are chosen."""
SMALLEST = 2.0**-100
ROUTER_WEIGHTS = 14
"""Where the operator's input of that name stands."""


class ChosenExperts:
    """The weighted sum over all experts becomes one over those a token chose.

    ``W = ScatterElements(weights at the chosen) ; x @ gate_up[E, H, 2F] -> Split -> silu(gate) * up -> @ down[E, F, H]
    -> Mul(Unsqueeze(Transpose(W))) -> ReduceSum`` becomes ``MoE(x, Log(Max(W, tiny)), gate_up[E, 2F, H],
    down[E, H, F]) * ReduceSum(W)``, with the file's rows of gate and up in turn.

    The operator's own softmax over the logarithms of the K largest weights gives them back, made to sum to 1; the sum
    puts back what that took: the scale, or weights that never summed to 1. Routing itself stays as it was, in float32.
    """

    name = "experts"

    def matches(self, node: ir.Node) -> MatchResult:
        """The sum over experts, of products with two stacks of weights."""
        mixture = _mixture(node)
        if mixture is None:
            return NOT_MINE
        if mixture.per_token is None:
            return refused("how many experts a token has is not a constant")
        return MATCHED

    def rewrite(self, node: ir.Node, emit: Emitter) -> list[ir.Value]:
        """Return ``[X, H]``."""
        mixture = _mixture(node)
        assert mixture is not None
        assert mixture.per_token is not None
        for weight in (mixture.gate_up, mixture.down):
            assert weight.shape is not None
            experts, columns, rows = weight.shape
            weight.shape = ir.Shape((experts, rows, columns))
        dtype = dtype_of(mixture.weights)
        floor = emit.scalar(SMALLEST_WEIGHT.get(dtype, SMALLEST), dtype)
        logits = emit.op("Log", emit.op("Max", mixture.weights, floor))
        mixed = emit.op(
            MOE,
            mixture.x,
            logits,
            mixture.gate_up,
            None,
            mixture.down,
            domain=MICROSOFT,
            k=mixture.per_token,
            normalize_routing_weights=1,
            **SWIGLU,
        )
        result = emit.op("Mul", mixed, emit.op("ReduceSum", mixture.weights, emit.ints(1), keepdims=1))
        if dtype == ir.DataType.FLOAT:
            return [result]
        # In half precision the sum was done in float32, between two casts: readers of the second need neither.
        emit.replaced += [(use.node.outputs[0], result) for use in node.outputs[0].uses() if use.node.op_type == "Cast"]
        return [emit.op("Cast", result, to=int(ir.DataType.FLOAT))]


@dataclass(frozen=True, slots=True)
class QuantizedExperts:
    """Experts with weights as integers in blocks.

    ``MoE(x, Log(Max(W, tiny)), gate_up, down) * ReduceSum(W)`` becomes ``QMoE(x, W, integers and scales of both,
    router_weights=W)``, which weighs by W as it is.
    """

    formats: Mapping[str, WeightFormats]
    dtype: str
    name: str = "expert weights"

    def matches(self, node: ir.Node) -> MatchResult:
        """A mixture with weights the recipe names."""
        if node.op_type != MOE or node.domain != MICROSOFT:
            return NOT_MINE
        weight = node.inputs[2]
        return MATCHED if weight is not None and weight.name in self.formats else NOT_MINE

    def rewrite(self, node: ir.Node, emit: Emitter) -> list[ir.Value]:
        """Return ``[X, H]``, what was multiplied by the weights' sum before."""
        x, logits, gate_up, _, down = node.inputs
        log = producer_of(logits, "Log")
        floored = producer_of(log.inputs[0], "Max") if log is not None else None
        assert floored is not None
        weights, inputs = floored.inputs[0], list[ir.Value | None]()
        assert gate_up is not None
        form = self.formats[gate_up.name or ""].decode
        assert isinstance(form, ExpertWeights)
        for weight in (gate_up, down):
            assert weight is not None
            assert weight.name is not None
            assert weight.shape is not None
            experts, rows, columns = (int(size) for size in weight.shape)  # type: ignore[arg-type]
            specs = form.stacked_tensors(weight.name, experts, rows, columns, self.dtype)
            inputs += [*(emit.weight(spec) for spec in specs), None]
        absent = [None] * (ROUTER_WEIGHTS - 2 - len(inputs))
        mixed = emit.op(
            QMOE,
            x,
            weights,
            *inputs,
            *absent,
            weights,
            domain=MICROSOFT,
            k=int_attribute(node, "k"),
            normalize_routing_weights=0,
            expert_weight_bits=form.bits,
            block_size=form.block,
            accuracy_level=form.accuracy_level,
            weights_prepacked=0,
            **SWIGLU,
        )
        (weighted,) = (use.node for use in node.outputs[0].uses())
        emit.replaced.append((weighted.outputs[0], mixed))
        return [mixed]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mixture:
    """What the sum over all experts is made of: ``x`` ``[X, H]``, ``weights`` ``[X, E]``, stacks ``[E, in, out]``."""

    x: ir.Value
    weights: ir.Value
    gate_up: ir.Value
    down: ir.Value
    per_token: int | None


def _mixture(node: ir.Node) -> _Mixture | None:
    """The parts of a sum over experts; None where a node is none."""
    if node.op_type != "ReduceSum":
        return None
    cast = producer_of(node.inputs[0], "Cast")
    weighted = producer_of(cast.inputs[0] if cast is not None else node.inputs[0], "Mul")
    down = producer_of(weighted.inputs[0], "MatMul") if weighted is not None else None
    if weighted is None or down is None or not _is_stack(down.inputs[1]):
        return None
    gated = producer_of(down.inputs[0], "Mul")
    split = producer_of(gated.inputs[1], "Split") if gated is not None else None
    gate_up = producer_of(split.inputs[0], "MatMul") if split is not None else None
    unsqueezed = producer_of(weighted.inputs[1], "Unsqueeze")
    turned = producer_of(unsqueezed.inputs[0], "Transpose") if unsqueezed is not None else None
    scatter = producer_of(turned.inputs[0], "ScatterElements") if turned is not None else None
    if gate_up is None or scatter is None or not _is_stack(gate_up.inputs[1]):
        return None
    x, stack, last = gate_up.inputs[0], gate_up.inputs[1], down.inputs[1]
    assert x is not None
    assert stack is not None
    assert last is not None
    return _Mixture(x=x, weights=scatter.outputs[0], gate_up=stack, down=last, per_token=_per_token(scatter))


def _is_stack(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer() and len(value.shape or ()) == STACK_RANK


def _per_token(scatter: ir.Node) -> int | None:
    """K of the choice whose indices weights are scattered to."""
    choice = producer_of(scatter.inputs[1], "TopK")
    count = choice.inputs[1] if choice is not None else None
    if count is None or count.const_value is None:
        return None
    return int(count.const_value.numpy().item())
