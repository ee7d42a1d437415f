"""Islands of float32 in a float16 program: what float16 cannot hold stays float32 until something that fits comes out.

A node that reads or makes such a value is computed in float32; its other inputs are cast up, and what it makes that
fits is cast down. What leaves the program keeps its dtype.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from glm_export.errors import InputError
from glm_export.graphs.dialect import Dialect
from glm_export.graphs.rewriter import FLOAT16_RANGE, Float16Range, float16_range, overflowing
from glm_export.spec.config import GlmConfig
from glm_export.spec.signature import Signature

HALF, SINGLE = ir.DataType.FLOAT16, ir.DataType.FLOAT
MOVES = {
    "Concat", "Expand", "Gather", "GatherElements", "GatherND", "Reshape", "ScatterElements", "Slice", "Split",
    "Squeeze", "TensorScatter", "Transpose", "Unsqueeze",
}  # fmt: skip
"""Operators that only move values: from float16 they make nothing that float16 cannot hold."""
MERGES = {"Concat", "ScatterElements", "TensorScatter"}
"""Those of them whose output holds all of their inputs: where it fits, they do."""
INTEGERS, TRUTHS = {"Shape", "Size"}, {"And", "Equal", "Greater", "LessOrEqual", "Not", "Or"}
# Inputs that say what dtype comes out, where it is not the first one.
TYPED_BY = {"DequantizeLinear": 1, "GatherBlockQuantized": 2, "QuantizeLinear": 2, "Where": 1}


def dialect_with_float32_regions(dialect: Dialect) -> Dialect:
    """The dialect with as many ``Cast`` as float32 regions need."""

    def expected_counts(config: GlmConfig) -> Counter[str]:
        return Counter({name: count for name, count in dialect.expected_counts(config).items() if name != "Cast"})

    return replace(dialect, allowed_ops=dialect.allowed_ops | {"Cast"}, expected_counts=expected_counts)


def make_float32_regions(model: ir.Model, signature: Signature) -> list[str]:
    """Keep in float32 what :func:`glm_export.graphs.precision.activation_names.annotate` noted, in place.

    GroupQueryAttention is not widened for its scores: its kernels keep them in float32, and CUDA has it in 16-bit
    floats only. Queries that do not fit leave no choice; that node then runs on the CPU.

    Args:
        model: a float16 program of any dialect, lowered.
        signature: its inputs and outputs.

    Returns:
        The places that are float32 now, in graph order; where there are none the program is as it was.

    Raises:
        InputError: what leaves the program does not fit float16.
    """
    for spec, value in zip(signature.outputs, model.graph.outputs, strict=True):
        if overflowing(value) is not None and spec.dtype == "float16":
            raise InputError(
                f"{spec.name} is float16, and {overflowing(value)} does not fit it; export with --dtype bfloat16"
            )
    float32_regions = _Float32Regions(model.graph)
    for node in list(model.graph):
        float32_regions.visit(node)
    if float32_regions.wide or float32_regions.activations:
        common_passes.RemoveUnusedNodesPass()(model)
    return list(float32_regions.activations)


class _Float32Regions:
    """One pass over a graph, in order. ``wide``: values that were float16 and are float32 now."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.wide: set[ir.Value] = set()
        self.activations: dict[str, None] = {}
        self._dtypes: dict[ir.Value, ir.DataType] = {}
        self._raised: dict[ir.Value, ir.Value] = {}
        self._lowered: dict[ir.Value, ir.Value] = {}
        for node in graph:
            for value in node.outputs:
                self._dtypes[value] = self._made(node, value)

    def visit(self, node: ir.Node) -> None:
        """Decide about one node; those before it are decided."""
        reads_wide = any(value in self.wide for value in node.inputs)
        if node.op_type == "Cast":
            self._visit_cast(node)
        elif node.op_type == "QuantizeLinear" and reads_wide:
            self._widen_inputs(node)
        elif node.op_type == "DequantizeLinear":
            # Of a tensor rounded above; of weights the scales are in the file, and what they make is cast.
            if node.inputs[1] in self._raised:
                self._widen(node)
        elif node.op_type in MERGES and reads_wide and self._fits(node.outputs[0]):
            self._lower_inputs(node)
        elif reads_wide or (node.op_type not in MOVES and (self._overflows(node) or _scores_overflow(node))):
            self._widen(node)

    def _made(self, node: ir.Node, value: ir.Value) -> ir.DataType:
        """The dtype of an output; lowerings leave it open."""
        if value.dtype is not None:
            return value.dtype
        if node.op_type in INTEGERS:
            return ir.DataType.INT64
        if node.op_type in TRUTHS:
            return ir.DataType.BOOL
        if node.op_type == "Cast":
            return ir.DataType(node.attributes["to"].as_int())
        return self._dtype(node.inputs[TYPED_BY.get(node.op_type, 0)]) or ir.DataType.UNDEFINED

    def _dtype(self, value: ir.Value | None) -> ir.DataType | None:
        if value is None or value in self.wide:
            return None if value is None else SINGLE
        known = value.dtype or (value.const_value.dtype if value.const_value is not None else None)
        return known or self._dtypes.get(value)

    def _is_half(self, value: ir.Value | None) -> bool:
        return self._dtype(value) == HALF

    def _fits(self, value: ir.Value) -> bool:
        """Whether a value is known to fit; of what lowerings made between nothing is known, and it stays as it is."""
        known = float16_range(value)
        return value.is_graph_output() or (known is not None and known.fits)

    def _overflows(self, node: ir.Node) -> bool:
        """Whether a node makes what does not fit; or reads it, looked up in a table of float16 as it may be."""
        values = (*node.inputs, *node.outputs)
        return any(value is not None and overflowing(value) is not None and self._is_half(value) for value in values)

    def _widen(self, node: ir.Node) -> None:
        """Compute a node in float32."""
        scores = overflowing(node)
        if scores is not None and _scores_overflow(node):
            self.activations[scores] = None
        self._widen_inputs(node)
        for value in node.outputs:
            if not self._is_half(value):
                continue
            if self._fits(value):
                self._put_cast_behind(value)
            else:
                self._keep_wide(value)

    def _keep_wide(self, value: ir.Value) -> None:
        self.wide.add(value)
        if value.dtype is not None:
            value.type = ir.TensorType(SINGLE)
        name = overflowing(value)
        if name is not None:
            self.activations[name] = None

    def _widen_inputs(self, node: ir.Node) -> None:
        for index, value in enumerate(node.inputs):
            if value is not None and self._is_half(value):
                node.replace_input_with(index, self._in_single(value, node))

    def _lower_inputs(self, node: ir.Node) -> None:
        for index, value in enumerate(node.inputs):
            if value is not None and value in self.wide:
                if value not in self._lowered:
                    self._lowered[value] = self._cast(value, HALF, node)
                node.replace_input_with(index, self._lowered[value])

    def _in_single(self, value: ir.Value, reader: ir.Node) -> ir.Value:
        """A float16 value in float32, made once: a converted constant or a cast, where there is none already."""
        found = self._already_single(value)
        if found is None and value.const_value is not None:
            tensor = ir.tensor(value.const_value.numpy().astype(np.float32), name=f"{value.name}.float32")
            found = ir.Value(name=tensor.name, const_value=tensor)
            self.graph.register_initializer(found)
        self._raised[value] = found or self._cast(value, SINGLE, reader)
        return self._raised[value]

    def _already_single(self, value: ir.Value) -> ir.Value | None:
        """The float32 form of a value: itself, one made before, or what it was rounded from."""
        if value in self.wide:
            return value
        producer = value.producer()
        source = producer.inputs[0] if producer is not None and producer.op_type == "Cast" else None
        return self._raised.get(value) or (source if self._dtype(source) == SINGLE else None)

    def _cast(self, value: ir.Value, dtype: ir.DataType, reader: ir.Node) -> ir.Value:
        """The value in another dtype, cast before its first reader: nodes are visited in order."""
        name = f"{value.name}.{'float32' if dtype == SINGLE else 'float16'}"
        node = ir.node("Cast", [value], {"to": int(dtype)}, name=name)
        node.outputs[0].name = name
        self._dtypes[node.outputs[0]] = dtype
        self.graph.insert_before(reader, node)
        return node.outputs[0]

    def _put_cast_behind(self, value: ir.Value) -> None:
        """All readers get the value cast down; it takes the name where it leaves the program."""
        node = ir.node("Cast", [value], {"to": int(HALF)}, name=f"{value.name}.float16")
        lowered, leaves = node.outputs[0], value.is_graph_output()
        producer = value.producer()
        assert producer is not None
        lowered.type, lowered.shape = ir.TensorType(HALF), value.shape
        lowered.name, name = (value.name, f"{value.name}.float32") if leaves else (node.name, value.name)
        value.replace_all_uses_with(lowered, replace_graph_outputs=True)
        node.replace_input_with(0, value)
        value.name = name
        self.graph.insert_after(producer, node)
        lowered.meta[FLOAT16_RANGE] = Float16Range(lowered.name or "", fits=True)
        self.wide.add(value)
        if value.dtype is not None:
            value.type = ir.TensorType(SINGLE)

    def _visit_cast(self, node: ir.Node) -> None:
        """Casts to float32 of what is float32 already, and to float16 of what does not fit it, fall away."""
        (source,), (value,) = node.inputs, node.outputs
        assert source is not None
        if self._dtype(value) == SINGLE:
            single = self._already_single(source)
            if single is not None:
                value.replace_all_uses_with(single)
        elif self._is_half(value) and self._dtype(source) == SINGLE and overflowing(value) is not None:
            value.replace_all_uses_with(source)
            source.meta[FLOAT16_RANGE] = value.meta[FLOAT16_RANGE]
            self._keep_wide(source)


def _scores_overflow(node: ir.Node) -> bool:
    """Whether a node makes attention's scores, and they do not fit."""
    if overflowing(node) is None:
        return False
    if node.op_type == "MatMul":
        # The second product of attention's parts reads what softmax made of the first.
        return bool({use.node.op_type for use in node.outputs[0].uses()} & {"Cast", "Where"})
    return node.op_type == "Attention"
