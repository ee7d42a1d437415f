"""A sum and its norm in one operator: equal numbers, and sums with a bias left alone."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper

from glm_export.graphs.rewriter import apply_rule
from glm_export.graphs.rules.ort.skip_norm import AddAndNorm

HIDDEN = 8


def program(norm: str, other: str, *, sum_is_read: bool = True) -> onnx.ModelProto:
    """``norm(x + other)``; ``other`` is an input or a bias. The sum is an output, too, as the residual is."""
    random = np.random.default_rng(0)
    weights = [onnx.numpy_helper.from_array(random.standard_normal(HIDDEN).astype(np.float32), "weight")]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, HIDDEN))]
    if other == "bias":
        weights.append(onnx.numpy_helper.from_array(random.standard_normal(HIDDEN).astype(np.float32), "bias"))
    else:
        inputs.append(helper.make_tensor_value_info(other, TensorProto.FLOAT, (1, 3, HIDDEN)))
    nodes = [
        helper.make_node("Add", ["x", other], ["sum"], name="add"),
        helper.make_node(norm, ["sum", "weight"], ["normed"], name="norm", axis=-1, epsilon=1e-5),
        helper.make_node("Neg", ["sum"], ["residual"], name="neg"),
    ]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 3, HIDDEN)) for name in ("normed", "residual")
    ]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)], ir_version=10
    )


def run(model: onnx.ModelProto) -> list[np.ndarray]:
    random = np.random.default_rng(1)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {value.name: random.standard_normal((1, 3, HIDDEN)).astype(np.float32) for value in session.get_inputs()}
    return session.run(None, feeds)


@pytest.mark.parametrize("norm", ["RMSNormalization", "LayerNormalization"])
def test_sum_and_norm_become_one(norm: str) -> None:
    before = program(norm, "y")
    model = ir.from_proto(before)
    fired, reasons = apply_rule(model, AddAndNorm(), {}, {})
    assert (fired, reasons) == (1, [])
    after = ir.to_proto(model)
    assert {"SkipSimplifiedLayerNormalization", "SkipLayerNormalization"} & {node.op_type for node in after.graph.node}
    for found, expected in zip(run(after), run(before), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_bias_is_no_residual() -> None:
    """The operator's second input has the first one's shape; a bias would be read beyond its end."""
    model = ir.from_proto(program("RMSNormalization", "bias"))
    fired, reasons = apply_rule(model, AddAndNorm(), {}, {})
    assert fired == 0
    assert reasons == ["norm: it norms a bias's sum"]


def test_other_operators_are_passed_over_in_silence() -> None:
    before = program("RMSNormalization", "y")
    before.graph.node[0].op_type = "Mul"
    fired, reasons = apply_rule(ir.from_proto(before), AddAndNorm(), {}, {})
    assert fired == 0
    assert reasons == ["norm: it norms no sum"]
