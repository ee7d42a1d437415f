"""From the canonical program to a dialect: its rules in order, each counted against what the config demands."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from glm_export.config import GlmConfig
from glm_export.graphs.dialect import Dialect
from glm_export.graphs.invariants import InvariantError
from glm_export.graphs.rule import apply_rule

SHOWN_REASONS = 3


def lower(model: ir.Model, dialect: Dialect, config: GlmConfig) -> dict[str, int]:
    """Rewrite a canonical program in place; weights are never read.

    Args:
        model: canonical, checked.
        dialect: the target.
        config: the sizes, which fix how often each rule must fire.

    Returns:
        How often each rule fired.

    Raises:
        InvariantError: a rule fired more or less often than the config demands, with the reasons it gave.
    """
    fired: dict[str, int] = {}
    constants: dict[tuple[object, ...], ir.Value] = {}
    expected = dialect.expected_rewrites(config)
    for rule in dialect.rules:
        fired[rule.name], reasons = apply_rule(model, rule, constants)
        if fired[rule.name] != expected[rule.name]:
            why = f"; {'; '.join(reasons[:SHOWN_REASONS])}" if reasons else ""
            raise InvariantError(
                f"dialect {dialect.name}: rule {rule.name} should fire {expected[rule.name]} times, "
                f"fired {fired[rule.name]}{why}"
            )
    model.graph.opset_imports[""] = dialect.opset
    model.opset_imports[""] = dialect.opset
    model.ir_version = dialect.ir_version
    ir.passes.Sequential(common_passes.CommonSubexpressionEliminationPass(), common_passes.RemoveUnusedNodesPass())(
        model
    )
    return fired
