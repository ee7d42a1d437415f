"""Changes that leave a program's numbers alone, as other exporters, optimizers and editors make them."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from tests.helpers.faults import Planting

Change = Callable[[Planting], None]
Step = tuple[str, list[str], dict[str, object]]


def _each(operator: str, change: Callable[[Planting, onnx.NodeProto], list[onnx.NodeProto]]) -> Change:
    """Put other nodes in the place of every node of an operator."""

    def changed(given: Planting) -> None:
        nodes = [
            new
            for node in list(given.graph.node)
            for new in (change(given, node) if node.op_type == operator else [node])
        ]
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del given.graph.node[:]
        given.graph.node.extend(copies)

    return changed


def _commuted(_: Planting, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    return [helper.make_node(node.op_type, list(reversed(node.input)), node.output, node.name)]


def _chain(*steps: Step, ends: str) -> list[onnx.NodeProto]:
    """Nodes one after another; ``<`` stands for the output of the one before."""
    made, before = [], ""
    for place, (operator, inputs, attributes) in enumerate(steps):
        output = ends if place == len(steps) - 1 else f"{ends}/step_{place}"
        read = [before if name == "<" else name for name in inputs]
        made.append(helper.make_node(operator, read, [output], output, **attributes))
        before = output
    return made


def _attributes(node: onnx.NodeProto) -> dict[str, object]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _norm_in_double(given: Planting, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    return _chain(
        ("Cast", [node.input[0]], {"to": TensorProto.DOUBLE}),
        ("Mul", ["<", given.constant(np.array(1.0))], {}),
        ("Cast", ["<"], {"to": TensorProto.FLOAT}),
        (node.op_type, ["<", node.input[1]], _attributes(node)),
        ends=node.output[0],
    )


def _transposed(given: Planting, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    turned = given.constant(np.ascontiguousarray(given.weight(node.input[1]).T))
    name = f"{node.output[0]}/turned"
    return [
        helper.make_node("Transpose", [turned], [name], name, perm=[1, 0]),
        helper.make_node("MatMul", [node.input[0], name], node.output, node.name),
    ]


def _flat_product(given: Planting, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """``Gemm`` over all tokens of all rows, as exporters that know no batch have it."""
    weight = given.weight(node.input[1])
    flat, size = f"{node.output[0]}/flat", f"{node.output[0]}/size"
    batch = f"{node.output[0]}/batch"
    columns = given.constant(np.array([-1, weight.shape[0]]))
    return [
        helper.make_node("Shape", [node.input[0]], [batch], batch, start=0, end=2),
        helper.make_node("Concat", [batch, given.constant(np.array([weight.shape[1]]))], [size], size, axis=0),
        helper.make_node("Reshape", [node.input[0], columns], [flat], flat),
        helper.make_node("Gemm", [flat, node.input[1]], [f"{flat}/product"], f"{flat}/product"),
        helper.make_node("Reshape", [f"{flat}/product", size], node.output, node.name),
    ]


def _silu_by_exponent(given: Planting, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    one = given.constant(np.array(1.0, np.float32))
    before: list[Step] = [("Neg", [node.input[0]], {}), ("Exp", ["<"], {}), ("Add", ["<", one], {})]
    return _chain(*before, ("Reciprocal", ["<"], {}), ends=node.output[0])


def _slices(given: Planting, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    sizes = given.weight(node.input[1]).tolist() if len(node.input) > 1 else None
    ends = np.cumsum(sizes) if sizes else np.array([512, 1024])
    starts = [0, *ends[:-1]]
    last = given.constant(np.array([-1]))
    return [
        helper.make_node(
            "Slice",
            [node.input[0], given.constant(np.array([start])), given.constant(np.array([end])), last],
            [output],
            output,
        )
        for start, end, output in zip(starts, ends, node.output, strict=True)
    ]


def _mask_as_bias(given: Planting, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    shown, hidden = (given.constant(np.array(number, np.float32)) for number in (0.0, np.finfo(np.float32).min))
    bias = f"{node.output[0]}/bias"
    inputs = list(node.input)
    inputs[3] = bias
    return [
        helper.make_node("Where", [node.input[3], shown, hidden], [bias], bias),
        helper.make_node(node.op_type, inputs, node.output, node.name, **_attributes(node)),
    ]


def _identity(_: Planting, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    name = f"{node.output[0]}/same"
    inputs = [name, *node.input[1:]]
    return [
        helper.make_node("Identity", [node.input[0]], [name], name),
        helper.make_node(node.op_type, inputs, node.output, node.name, **_attributes(node)),
    ]


def _times_one(given: Planting, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    one, before = given.constant(np.array(1, np.float32)), f"{node.output[0]}/before"
    return [
        helper.make_node(node.op_type, node.input, [before], node.name, **_attributes(node)),
        helper.make_node("Mul", [before, one], node.output, f"{before}/times"),
    ]


def _as_sum(_: Planting, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    return [helper.make_node("Sum", node.input, node.output, node.name)]


def _renamed_nodes(given: Planting) -> None:
    for index, node in enumerate(given.graph.node):
        node.name = f"n{index}"


def _without_names(given: Planting) -> None:
    for node in given.graph.node:
        node.name = ""


def _renamed_values(given: Planting) -> None:
    kept = {value.name for value in (*given.graph.input, *given.graph.output)}
    kept |= {tensor.name for tensor in given.graph.initializer}
    made = [name for node in given.graph.node for name in node.output if name not in kept]
    names = {name: f"v{index}" for index, name in enumerate(made)}
    for node in given.graph.node:
        for side in (node.input, node.output):
            for place, name in enumerate(side):
                side[place] = names.get(name, name)


def _renamed_weights(given: Planting) -> None:
    names = {tensor.name: f"w{index}" for index, tensor in enumerate(given.graph.initializer)}
    for tensor in given.graph.initializer:
        tensor.name = names[tensor.name]
    for node in given.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = names.get(name, name)


def _weights_reversed(given: Planting) -> None:
    tensors = [TensorProto.FromString(tensor.SerializeToString()) for tensor in given.graph.initializer]
    del given.graph.initializer[:]
    given.graph.initializer.extend(reversed(tensors))


def _another_order(given: Planting) -> None:
    """Another of the orders in which every node stands behind what it reads."""
    chance, left = random.Random(3), list(given.graph.node)
    made = {value.name for value in given.graph.input} | {tensor.name for tensor in given.graph.initializer} | {""}
    order: list[onnx.NodeProto] = []
    while left:
        ready = [node for node in left if made.issuperset(node.input)]
        node = chance.choice(ready)
        left.remove(node)
        made.update(node.output)
        order.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del given.graph.node[:]
    given.graph.node.extend(order)


def _weights_inside(given: Planting) -> None:
    for tensor in given.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(given.weight(tensor.name), tensor.name))


def _dead_nodes(given: Planting) -> None:
    given.graph.node.extend(
        helper.make_node("Relu", [node.output[0]], [f"{node.output[0]}/unread"], f"{node.name}/unread")
        for node in list(given.graph.node)
        if node.op_type == "MatMul"
    )


def _told(given: Planting) -> None:
    given.graph.doc_string = "edited"
    for node in given.graph.node:
        node.doc_string = node.op_type
        node.metadata_props.add(key="by", value="an editor")


def optimized(level: str) -> Callable[[Path], None]:
    """The graph as ONNX Runtime rewrites it, saved in its place."""

    def changed(folder: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        options.optimized_model_filepath = str(folder / "optimized.onnx")
        onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
        (folder / "optimized.onnx").replace(folder / "model.onnx")

    return changed


HARMLESS: dict[str, Change] = {
    "sums commuted": _each("Add", _commuted),
    "products commuted": _each("Mul", _commuted),
    "weights turned": _each("MatMul", _transposed),
    "flat products": _each("MatMul", _flat_product),
    "sigmoid by its exponent": _each("Sigmoid", _silu_by_exponent),
    "slices for splits": _each("Split", _slices),
    "mask as a bias": _each("Attention", _mask_as_bias),
    "identities before norms": _each("RMSNormalization", _identity),
    "identities before products": _each("MatMul", _identity),
    "identities before sums": _each("Add", _identity),
    "norms' inputs through double": _each("RMSNormalization", _norm_in_double),
    "attention times one": _each("MatMul", _times_one),
    "Sum for Add": _each("Add", _as_sum),
    "nodes renamed": _renamed_nodes,
    "nodes without names": _without_names,
    "values renamed": _renamed_values,
    "weights renamed": _renamed_weights,
    "weights in another order": _weights_reversed,
    "nodes in another order": _another_order,
    "weights inside the graph": _weights_inside,
    "nodes nobody reads": _dead_nodes,
    "words": _told,
}
