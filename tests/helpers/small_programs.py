"""The smallest programs a graph rule is shown on: written as ONNX text, rewritten, and run before and after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
import onnxruntime
import torch
from onnx import helper, numpy_helper, parser, shape_inference

from glm_export.calibration.formats import encode
from glm_export.graphs.rewriter import MICROSOFT, Rule, apply_rule
from glm_export.spec.dtypes import ONNX_DTYPES
from glm_export.spec.weight_formats import WeightFormat

Arrays = Mapping[str, np.ndarray]


def program(text: str, weights: Arrays | None = None, *, opset: int = 23) -> onnx.ModelProto:
    """A graph in ONNX's text form, its initializers, and what shape inference knows of its values."""
    graph = parser.parse_graph(text)
    for index, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{index}"  # what a rule makes is named after what it replaces
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in (weights or {}).items())
    versions = [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=versions, ir_version=10)
    return shape_inference.infer_shapes(model, strict_mode=True)


@dataclass(frozen=True)
class Rewritten:
    """A program after a rule: how often it fired, and why it left alone what it ought to take."""

    model: onnx.ModelProto
    fired: int
    reasons: list[str]

    @property
    def operators(self) -> Counter[str]:
        """How often each operator appears, in branches too."""
        return operators(self.model.graph)


def operators(graph: onnx.GraphProto) -> Counter[str]:
    """How often each operator appears, in branches too."""
    counts = Counter(node.op_type for node in graph.node)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                counts += operators(attribute.g)
    return counts


def rewritten(
    model: onnx.ModelProto, rule: Rule, stored: Mapping[str, onnx.TensorProto] | None = None, *, opset: int = 23
) -> Rewritten:
    """Apply one rule as lowering does, on a copy.

    Args:
        model: the program before.
        rule: the rewrite; the signature's inputs it asks for are the program's. Those nobody reads then are dropped.
        stored: what the file of weights holds of the initializers the rule makes.
        opset: of the program after.
    """
    graph = ir.from_proto(model)
    inputs = {value.name: value for value in graph.graph.inputs if value.name is not None}
    fired, reasons = apply_rule(graph, rule, {}, inputs)
    for name, tensor in (stored or {}).items():
        graph.graph.initializers[name].const_value = ir.serde.deserialize_tensor(tensor)
    graph.opset_imports[""] = opset
    common_passes.RemoveUnusedNodesPass()(graph)
    read = [value for value in graph.graph.inputs if value.uses()]
    graph.graph.inputs.clear()
    graph.graph.inputs.extend(read)
    after = ir.to_proto(graph)
    # Values that were float stay declared so where a rule keeps integers: what runs it finds the dtypes itself.
    del after.graph.value_info[:]
    onnx.checker.check_model(after)
    return Rewritten(after, fired, reasons)


def run(model: onnx.ModelProto, feeds: Arrays) -> dict[str, np.ndarray]:
    """Outputs by name, on ONNX Runtime's CPU provider; of the feeds those the program has."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    # As it stands: ONNX Runtime would fuse what a rule takes apart, and round what it does not.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    wanted = {value.name: feeds[value.name] for value in session.get_inputs()}
    return dict(zip(names, session.run(names, wanted), strict=True))


def assert_left_alone(model: onnx.ModelProto, rule: Rule, reason: str | None = None) -> None:
    """A near miss: the rule does not fire, and says why where the node is of its kind."""
    after = rewritten(model, rule)
    assert after.fired == 0
    assert [text.partition(": ")[2] for text in after.reasons] == ([reason] if reason else [])


def assert_equal(found: Arrays, expected: Arrays, tolerance: float = 1e-6) -> None:
    """The same outputs, none of them empty."""
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert values.size
        np.testing.assert_allclose(found[name], values, atol=tolerance, rtol=tolerance, err_msg=name)


def stored_tensors(form: WeightFormat, weight_NK: torch.Tensor, name: str) -> dict[str, onnx.TensorProto]:
    """What the file of weights holds of a weight in a format, as calibration writes it, in a float32 program."""
    rows, columns = weight_NK.shape
    specs = form.stored_tensors(name, rows, columns, "float32")
    pieces: dict[int, list[bytes]] = {index: [] for index in range(len(specs))}
    for index, piece in encode(form, weight_NK):
        pieces[index].append(piece.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return {
        spec.name: onnx.TensorProto(
            name=spec.name, dims=[int(size) for size in spec.dims], raw_data=b"".join(pieces[index]),
            data_type=onnx.TensorProto.DataType.Value(ONNX_DTYPES[spec.dtype]),
        )
        for index, spec in enumerate(specs)
    }  # fmt: skip


def random_arrays(seed: int, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Normal float32 arrays of these shapes."""
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
