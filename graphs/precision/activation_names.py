"""Which of the places calibration measures each value of the canonical program is, and whether it fits float16.

Places are modules' names for what they return, and the same with ``.input`` for what they are given. Notes lie in the
values' ``meta``, where rules carry them on (``graphs/rewriter.py``) and nothing writes them to a file.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from glm_export.graphs.rewriter import FITS, PLACE

NORMS = ("RMSNormalization", "LayerNormalization")
KEY_INPUT, VALUE_INPUT = 1, 2
INPUT, SCORES = ".input", ".scores"


def annotate(model: ir.Model, maxima: Mapping[str, float]) -> None:
    """Note of every value that was measured whether it fits, and of attention whether its scores do.

    Args:
        model: canonical, tidied.
        maxima: what does not fit, by place; with nothing here, nothing is noted.
    """
    if not maxima:
        return
    for node in model.graph:
        for value in node.outputs:
            places = _places(value, node, model.graph)
            if places:
                value.meta[PLACE] = _note(places, maxima)
        if node.op_type == "Attention" and _scope(node) + SCORES in maxima:
            node.meta[PLACE] = _scope(node) + SCORES
    for node in model.graph:
        if node.op_type == "Add" and node.outputs[0].meta.get(PLACE):
            _spread(node, node.outputs[0].meta[PLACE])


def _scope(node: ir.Node) -> str:
    """The module that made a node."""
    return (node.name or "").rpartition("/")[0]


def _note(places: list[str], maxima: Mapping[str, float]) -> str:
    """All places of a value are the same numbers, but where a product's input was smoothed, it knows best."""
    deciding, naming = places[0], places[-1]
    if deciding not in maxima:
        return FITS
    return naming if naming in maxima else deciding


def _places(value: ir.Value, node: ir.Node, graph: ir.Graph) -> list[str]:
    """Names of one value's place, the one that decides first; empty where it was not measured."""
    scope = _scope(node)
    layer, _, number = scope.rpartition(".")
    if layer == "layers" and number.isdecimal() and node.op_type == "Add":
        # The two sums of a layer: what its second norm reads, and what it returns.
        return [f"{scope}.mlp_norm{INPUT}" if node.name == f"{scope}/Add" else scope]
    if node.op_type == "Attention" and (value.index() or 0) > 0:
        return [_kept(scope, value.index() or 0)]
    places = []
    for use in value.uses():
        reader = _scope(use.node)
        if use.node.op_type == "Attention" and use.idx in (KEY_INPUT, VALUE_INPUT):
            places.append(_kept(reader, use.idx))
        elif use.idx == 0 and f"{reader}.weight" in graph.initializers and _is_module(use.node, reader):
            places.append(f"{reader}{INPUT}")
        elif scope == f"{reader}.mlp":
            places.append(scope)
    if f"{scope}.weight" in graph.initializers:
        places.append(scope)
    return places


def _is_module(node: ir.Node, scope: str) -> bool:
    """Whether a node is a linear layer's product, or a norm; what else lies in its scope came behind it."""
    weight = node.inputs[1].name if len(node.inputs) > 1 and node.inputs[1] is not None else None
    return node.op_type in (*NORMS, "MatMul") and weight == f"{scope}.weight"


def _kept(attention: str, index: int) -> str:
    """The place of a layer's keys or values."""
    return f"{attention.removesuffix('.attention')}.{'key' if index == KEY_INPUT else 'value'}"


def _spread(node: ir.Node, place: str) -> None:
    """What was not measured and goes into a sum that does not fit may not fit either: a scaled residual, experts."""
    for value in node.inputs if node.op_type == "Add" else node.inputs[:1]:
        if value is None or PLACE in value.meta or value.producer() is None:
            continue
        value.meta[PLACE] = place
        producer = value.producer()
        if producer is not None and producer.op_type != "MatMul":
            _spread(producer, place)
