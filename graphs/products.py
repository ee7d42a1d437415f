"""Products alone, in any form a recipe can give their weights: what forms are measured on.

Shapes: K input channels, N output channels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from glm_export.graphs.quantized import quantizing_rules
from glm_export.graphs.rewriter import MICROSOFT, apply_rule
from glm_export.spec.weight_formats import SCALES, WeightFormat, WeightFormats

OPSET, IR_VERSION = 23, 10
INPUT, OUTPUT = "x", "y"


def products_model(form: WeightFormat | None, *, rows_N: int, columns_K: int, copies: int) -> ir.Model:
    """Products of one size, each with an input ``[tokens, K]`` and a weight of its own.

    Args:
        form: of the weights, which are random; None: float32.
        rows_N: output channels.
        columns_K: input channels.
        copies: how many.

    Returns:
        A program with inputs ``x0``, ``x1``, … and outputs ``y0``, ``y1``, … ``[tokens, N]``.
    """
    # An input for each: where several read one, ONNX Runtime makes no integer product of Q/DQ.
    read = [_float(f"{INPUT}{index}", "tokens", columns_K) for index in range(copies)]
    weights = [_float(f"weight{index}", columns_K, rows_N) for index in range(copies)]
    pairs = enumerate(zip(read, weights, strict=True))
    nodes = [ir.node("MatMul", [x, weight], name=f"product{index}") for index, (x, weight) in pairs]
    outputs = []
    for index, node in enumerate(nodes):
        node.outputs[0].name = f"{OUTPUT}{index}"
        outputs.append(node.outputs[0])
    graph = ir.Graph(read, outputs, nodes=nodes, initializers=weights, opset_imports={"": OPSET, MICROSOFT: 1})
    model = ir.Model(graph, ir_version=IR_VERSION)
    if form is not None:
        formats = {f"weight{index}": WeightFormats(form) for index in range(copies)}
        constants: dict[tuple[object, ...], ir.Value] = {}
        for rule, _ in quantizing_rules(formats, "float32", opset=OPSET):
            apply_rule(model, rule, constants, {})
    _fill(model)
    return model


def write_products(
    folder: Path, form: WeightFormat | None, *, rows_N: int, columns_K: int, copies: int
) -> tuple[Path, int]:
    """As :func:`products_model`, in a new folder: the file, and the bytes of its weights."""
    model = products_model(form, rows_N=rows_N, columns_K=columns_K, copies=copies)
    folder.mkdir(parents=True)
    ir.save(model, folder / "model.onnx", external_data="weights")
    return folder / "model.onnx", weight_bytes(model)


def _float(name: str, *dims: int | str) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(dims), type=ir.TensorType(ir.DataType.FLOAT))


def _fill(model: ir.Model) -> None:
    """Random weights and small scales, where there is no value yet; initializers that nothing reads go."""
    for name, value in list(model.graph.initializers.items()):
        if not value.uses():
            del model.graph.initializers[name]
        elif value.const_value is None:
            value.const_value = ir.tensor(_random(value), name=name)


def _random(value: ir.Value) -> NDArray[np.generic]:
    assert value.shape is not None
    assert value.dtype is not None
    shape = list(value.shape.numpy())
    random = np.random.default_rng(0)
    if value.dtype == ir.DataType.FLOAT:
        small = (value.name or "").endswith(SCALES)
        return np.full(shape, 1e-3, np.float32) if small else random.random(shape, np.float32) - np.float32(0.5)
    found: NDArray[np.generic] = np.frombuffer(random.bytes(int(np.prod(shape))), value.dtype.numpy()).reshape(shape)
    return found


def weight_bytes(model: ir.Model) -> int:
    """What the weights of such a program take."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
