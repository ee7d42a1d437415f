"""How many bytes of weights one decode step reads: all of them, but of a table only the rows it is asked for."""

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


def program_weight_traffic(model_path: Path, batch: int) -> int:
    """Bytes of an ONNX file's weights that a step of ``batch`` tokens reads.

    Args:
        model_path: ``model.onnx``; external weights are not opened.
        batch: tokens of the step, each of which takes a row of every table.
    """
    graph = onnx.load(str(model_path), load_external_data=False).graph
    whole: set[str] = set()
    by_row: set[str] = set()
    for node in step_nodes(graph):
        tables = TABLES.get(("" if node.domain == "ai.onnx" else node.domain, node.op_type), ())
        for index, name in enumerate(node.input):
            (by_row if index in tables else whole).add(name)
    return sum(
        stored_bytes(weight) if weight.name in whole else batch * stored_bytes(weight) // max(1, weight.dims[0])
        for weight in graph.initializer
        if weight.name in whole | by_row
    )


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
