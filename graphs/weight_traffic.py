"""How many bytes of weights one decode step reads: all, but of tables and stacked experts only what is asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

if TYPE_CHECKING:
    pass


TABLES = {
    ("", "Gather"): (0,),
    ("", "RotaryEmbedding"): (1, 2),
    ("com.microsoft", "RotaryEmbedding"): (2, 3),
    ("com.microsoft", "GatherBlockQuantized"): (0, 2, 3),
    ("com.microsoft", "GroupQueryAttention"): (7, 8),
}
"""Operators that read rows of a table, and the inputs that are one."""


EXPERTS = {("com.microsoft", "MoE"): (2, 4), ("com.microsoft", "QMoE"): (2, 3, 5, 6)}
"""Operators that read some experts of a stack, ``k`` a token, and the inputs that are one."""


def program_weight_traffic(model_path: Path, batch: int) -> int:
    """Bytes of an ONNX file's weights that a step of ``batch`` tokens reads.

    Args:
        model_path: ``model.onnx``; external weights are not opened.
        batch: tokens of the step, each of which takes a row of every table, and experts of its own as long as there
            are others: the most that can be read.
    """
    graph = onnx.load(str(model_path), load_external_data=False).graph
    shapes = {weight.name: weight.dims for weight in graph.initializer}
    # Slices of the leading axis that are read; None: all of them.
    slices: dict[str, int | None] = {}
    for node in step_nodes(graph):
        operator = ("" if node.domain == "ai.onnx" else node.domain, node.op_type)
        tables, stacks = TABLES.get(operator, ()), EXPERTS.get(operator, ())
        chosen = batch * next((attribute.i for attribute in node.attribute if attribute.name == "k"), 1)
        for index, name in enumerate(node.input):
            if name not in shapes:
                continue
            if index in stacks:
                slices[name] = min(chosen, shapes[name][0])
            elif index not in tables:
                slices[name] = None
            else:
                slices.setdefault(name, batch)
    return sum(_bytes_read(weight, slices[weight.name]) for weight in graph.initializer if weight.name in slices)


def _bytes_read(weight: onnx.TensorProto, slices: int | None) -> int:
    stored = stored_bytes(weight)
    return stored if slices is None else slices * stored // max(1, weight.dims[0])


def step_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes a step runs: of a choice between forms of a weight, the one for few tokens (``else``)."""
    for node in graph.node:
        branches = [attribute.g for attribute in node.attribute if attribute.name == "else_branch"]
        for branch in branches:
            yield from step_nodes(branch)
        if not branches:
            yield node


def stored_bytes(weight: onnx.TensorProto) -> int:
    """Bytes of an initializer, wherever it lies."""
    for entry in weight.external_data:
        if entry.key == "length":
            return int(entry.value)
    if weight.HasField("raw_data"):
        return len(weight.raw_data)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(weight.data_type)
    return int(dtype.itemsize) * int(math.prod(weight.dims))
