"""From the canonical program to a dialect: its rules in order, each counted against what the config demands."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from glm_export.graphs.dialect import Dialect
from glm_export.graphs.invariants import InvariantError, require_border
from glm_export.graphs.rewriter import MICROSOFT, CountedRule, apply_rule
from glm_export.spec.config import GlmConfig
from glm_export.spec.dtypes import ONNX_DTYPES
from glm_export.spec.signature import Signature

SHOWN_REASONS = 3


def lower(
    model: ir.Model, dialect: Dialect, config: GlmConfig, signature: Signature, extra: Sequence[CountedRule] = ()
) -> dict[str, int]:
    """Rewrite a canonical program in place; weights are never read.

    Args:
        model: canonical, checked.
        dialect: the target.
        config: the sizes, which fix how often each rule must fire.
        signature: the target's inputs and outputs.
        extra: rules after the dialect's own, as a recipe brings them.

    Returns:
        How often each rule fired.

    Raises:
        InvariantError: a rule fired more or less often than the config demands, with the reasons it gave.
    """
    expected = dialect.expected_rewrites(config, signature)
    counted = [*((rule, expected[rule.name]) for rule in dialect.rules()), *extra]
    model.opset_imports[""] = dialect.opset
    model.ir_version = dialect.ir_version
    fired = _apply(model, dialect, counted, signature)
    if any(node.domain == MICROSOFT for node in model.graph):
        model.opset_imports[MICROSOFT] = 1
    return fired


def lower_to_ragged(model: ir.Model, dialect: Dialect, config: GlmConfig, signature: Signature) -> Signature | None:
    """Make of a dialect's program, in place, the twin that is told how many tokens of a call each row has.

    Args:
        model: lowered, checked; its weights stay where they are.
        dialect: its own.
        config: the sizes.
        signature: the program's.

    Returns:
        The twin's signature; None where the dialect has no twin for the family.

    Raises:
        InvariantError: a rule fired more or less often than the config demands, or the twin's inputs are others.
    """
    expected = dialect.expected_ragged(config, signature)
    if not expected:
        return None
    told = signature.told_query_lengths()
    _apply(model, dialect, [(rule, expected[rule.name]) for rule in dialect.ragged_rules(told)], told)
    _forget_shapes(model)
    model.graph.sort()
    require_border(model, told)
    return told


def _forget_shapes(model: ir.Model) -> None:
    """Of values inside: rows in which the program was traced are others, and a runtime plans its memory by them."""
    border = set(model.graph.outputs)
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value not in border:
                value.shape = None


def _apply(model: ir.Model, dialect: Dialect, rules: Sequence[CountedRule], signature: Signature) -> dict[str, int]:
    fired: dict[str, int] = {}
    constants: dict[tuple[object, ...], ir.Value] = {}
    inputs = _declare_inputs(model, signature)
    for rule, count in rules:
        fired[rule.name], reasons = apply_rule(model, rule, constants, inputs)
        if fired[rule.name] != count:
            why = f"; {'; '.join(reasons[:SHOWN_REASONS])}" if reasons else ""
            raise InvariantError(
                f"dialect {dialect.name}: rule {rule.name} should fire {count} times, fired {fired[rule.name]}{why}"
            )
    ir.passes.Sequential(common_passes.CommonSubexpressionEliminationPass(), common_passes.RemoveUnusedNodesPass())(
        model
    )
    _keep_inputs(model, signature, inputs)
    return fired


def _declare_inputs(model: ir.Model, signature: Signature) -> dict[str, ir.Value]:
    """Give inputs and outputs the shapes of the target; those the canonical program lacks are made.

    Inputs that the target does not have stay until the rules have done away with their readers.
    """
    present = {value.name: value for value in (*model.graph.inputs, *model.graph.outputs)}
    for spec in (*signature.inputs, *signature.outputs):
        value = present.get(spec.name)
        if value is None:
            value = present[spec.name] = ir.Value(name=spec.name)
            model.graph.inputs.append(value)
        value.shape = ir.Shape(spec.dims)
        value.type = ir.TensorType(ir.DataType[ONNX_DTYPES[spec.dtype]])
    return {spec.name: present[spec.name] for spec in signature.inputs}


def _keep_inputs(model: ir.Model, signature: Signature, inputs: dict[str, ir.Value]) -> None:
    """Bring the inputs into the signature's order, and drop the others.

    Raises:
        InvariantError: one that goes is still read.
    """
    for value in model.graph.inputs:
        if value.name not in inputs and value.uses():
            reader = next(iter(value.uses())).node
            raise InvariantError(f"{value.name} is no input of the target, but {reader.name} still reads it")
    model.graph.inputs.clear()
    model.graph.inputs.extend(inputs[spec.name] for spec in signature.inputs)
