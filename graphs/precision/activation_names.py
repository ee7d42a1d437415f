"""Which of the names calibration measures each value of the canonical program is, and whether it fits float16.

An activation's name is its module's for what that returns, and the same with ``.input`` for what it is given. Notes
lie in the values' ``meta``, where rules carry them on (``graphs/rewriter.py``) and nothing writes them to a file.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from glm_export.graphs.rewriter import FLOAT16_RANGE, Float16Range, overflowing

NORMS = ("RMSNormalization", "LayerNormalization")
KEY_INPUT, VALUE_INPUT = 1, 2
INPUT, SCORES = ".input", ".scores"


def annotate(model: ir.Model, maxima: Mapping[str, float]) -> None:
    """Note of every value that was measured whether it fits, and of attention whether its scores do.

    Args:
        model: canonical, tidied.
        maxima: what does not fit, by name; with nothing here, nothing is noted.
    """
    if not maxima:
        return
    for node in model.graph:
        for value in node.outputs:
            names = _names_of(value, node, model.graph)
            if names:
                value.meta[FLOAT16_RANGE] = _range(names, maxima)
        if node.op_type == "Attention" and _scope(node) + SCORES in maxima:
            node.meta[FLOAT16_RANGE] = Float16Range(_scope(node) + SCORES, fits=False)
    for node in model.graph:
        if node.op_type == "Add" and overflowing(node.outputs[0]) is not None:
            _spread(node, node.outputs[0].meta[FLOAT16_RANGE])


def _scope(node: ir.Node) -> str:
    """The module that made a node."""
    return (node.name or "").rpartition("/")[0]


def _range(names: list[str], maxima: Mapping[str, float]) -> Float16Range:
    """All names of a value are the same numbers, but where a product's input was smoothed, it knows best."""
    deciding, naming = names[0], names[-1]
    name = naming if naming in maxima else deciding
    return Float16Range(name, fits=deciding not in maxima)


def _names_of(value: ir.Value, node: ir.Node, graph: ir.Graph) -> list[str]:
    """Names of one value, the one that decides first; empty where it was not measured."""
    scope = _scope(node)
    layer, _, number = scope.rpartition(".")
    if layer == "layers" and number.isdecimal() and node.op_type == "Add":
        # The two sums of a layer: what its second norm reads, and what it returns.
        return [f"{scope}.mlp_norm{INPUT}" if node.name == f"{scope}/Add" else scope]
    if node.op_type == "Attention" and (value.index() or 0) > 0:
        return [_kept(scope, value.index() or 0)]
    names = []
    for use in value.uses():
        reader = _scope(use.node)
        if use.node.op_type == "Attention" and use.idx in (KEY_INPUT, VALUE_INPUT):
            names.append(_kept(reader, use.idx))
        elif use.idx == 0 and f"{reader}.weight" in graph.initializers and _is_module(use.node, reader):
            names.append(f"{reader}{INPUT}")
        elif scope == f"{reader}.mlp":
            names.append(scope)
    if f"{scope}.weight" in graph.initializers:
        names.append(scope)
    return names


def _is_module(node: ir.Node, scope: str) -> bool:
    """Whether a node is a linear layer's product, or a norm; what else lies in its scope came behind it."""
    weight = node.inputs[1].name if len(node.inputs) > 1 and node.inputs[1] is not None else None
    return node.op_type in (*NORMS, "MatMul") and weight == f"{scope}.weight"


def _kept(attention: str, index: int) -> str:
    """The name of a layer's keys or values."""
    return f"{attention.removesuffix('.attention')}.{'key' if index == KEY_INPUT else 'value'}"


def _spread(node: ir.Node, known: Float16Range) -> None:
    """What was not measured and goes into a sum that does not fit may not fit either: a scaled residual, experts."""
    for value in node.inputs if node.op_type == "Add" else node.inputs[:1]:
        if value is None or FLOAT16_RANGE in value.meta or value.producer() is None:
            continue
        value.meta[FLOAT16_RANGE] = known
        producer = value.producer()
        if producer is not None and producer.op_type != "MatMul":
            _spread(producer, known)
