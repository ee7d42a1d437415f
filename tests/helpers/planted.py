"""Programs with a defect planted, as a builder that misunderstands GLM would emit them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from glm_export.artifacts.program import OnnxProgram, load_program
from tests.helpers.recorded import recorded_again

EVERY = {"prefill", "chunk on a past", "decode", "padded batch", "batch decode", "end of context"}
PLANTED = {
    "half-split rotary": EVERY,
    "keys and values exchanged": EVERY,
    "padding is seen": {"padded batch", "batch decode"},
    "rotary base ignored": EVERY,
    "float16 rounding of the tables": EVERY,
}
"""Defect -> the cases of ``check`` that must fail; the others must not."""


def plant(program: OnnxProgram, defect: str, folder: Path) -> OnnxProgram:
    """A copy of the program with one defect."""
    shutil.copytree(program.folder, folder)
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    _CHANGE[defect](model, folder)
    onnx.save(model, str(folder / "model.onnx"))
    recorded_again(folder)
    return load_program(folder)


def _half_split(model: onnx.ModelProto, folder: Path) -> None:
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "RotaryEmbedding" and attribute.name == "interleaved":
                attribute.i = 0


def _exchange(model: onnx.ModelProto, folder: Path) -> None:
    for node in model.graph.node:
        if node.op_type == "Attention":
            node.input[1], node.input[2] = node.input[2], node.input[1]


def _see_padding(model: onnx.ModelProto, folder: Path) -> None:
    """The mask is compared with -1 instead of 0: every token counts as real."""
    (equal,) = [node for node in model.graph.node if node.op_type == "Equal"]
    model.graph.initializer.append(numpy_helper.from_array(np.array(-1, np.int64), "minus_one"))
    equal.input[1] = "minus_one"


def _tables(model: onnx.ModelProto, folder: Path, change: object) -> None:
    """Replace the external tables by changed ones inside the graph."""
    kept = {tensor.name: tensor for tensor in model.graph.initializer}
    for name in ("cos", "sin"):
        onnx.external_data_helper.load_external_data_for_tensor(kept[name], str(folder))
        changed = change(name, numpy_helper.to_array(kept[name]).astype(np.float32))
        kept[name].CopyFrom(numpy_helper.from_array(changed, name))


def _ignore_base(model: onnx.ModelProto, folder: Path) -> None:
    def other_base(name: str, table: np.ndarray) -> np.ndarray:
        positions, pairs = table.shape
        angles = np.outer(np.arange(positions), 500.0 ** (-np.arange(pairs) / pairs))
        return (np.cos if name == "cos" else np.sin)(angles).astype(np.float32)

    _tables(model, folder, other_base)


def _round_tables(model: onnx.ModelProto, folder: Path) -> None:
    _tables(model, folder, lambda _, table: table.astype(np.float16).astype(np.float32))


_CHANGE = {
    "half-split rotary": _half_split,
    "keys and values exchanged": _exchange,
    "padding is seen": _see_padding,
    "rotary base ignored": _ignore_base,
    "float16 rounding of the tables": _round_tables,
}
