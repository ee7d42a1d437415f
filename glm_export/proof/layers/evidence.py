"""One node as a file of its own, with what it read and what it should have put out: for a bug report."""

from __future__ import annotations

import shlex
from collections import OrderedDict
from pathlib import Path

import numpy as np
import onnx
from polygraphy.comparator import IterationResult, RunResults
from polygraphy.json import save_json
from polygraphy.logger import G_LOGGER

from glm_export.artifacts.output_folder import require_writable, whole_folder
from glm_export.errors import InputError
from glm_export.graphs.slices import model_of
from glm_export.proof.layers.guilty import GuiltyNode

NODE, INPUTS, EXPECTED, README = "node.onnx", "inputs.json", "expected.json", "README.md"
LARGEST_BYTES = 1 << 30
"""Of what a node reads: beyond it one file would not hold it."""


def save_evidence(model: onnx.ModelProto, node: GuiltyNode, tolerance: float, out: Path) -> str:
    """Write a folder with the node, its inputs and the reference's output.

    Args:
        model: the whole program, without its external data.
        node: found in it.
        tolerance: which the node is beyond, as a share of the largest value.
        out: a new folder.

    Returns:
        The command that shows it: Polygraphy's, to be run in the folder.

    Raises:
        InputError: the folder exists, or the node reads more than fits a file.
    """
    out = require_writable(out, force=False)
    weights = {value.name for value in node.inputs if value.is_weight}
    if sum(array.nbytes for name, array in node.inputs_arrays.items() if name in weights) > LARGEST_BYTES:
        raise InputError(f"{node.name} reads more than {LARGEST_BYTES >> 30} GB of weights, which no single file holds")
    given = {name: array for name, array in node.inputs_arrays.items() if name not in weights}
    types = {name: int(onnx.helper.np_dtype_to_tensor_dtype(array.dtype)) for name, array in given.items()}
    shapes = {name: array.shape for name, array in given.items()}
    alone = model_of(model, [node.index], types, [node.output], shapes)
    del alone.graph.initializer[:]
    alone.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in node.inputs_arrays.items() if name in weights
    )
    command = _command(node, tolerance)
    with whole_folder(out) as folder, G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        onnx.save(alone, str(folder / NODE))
        save_json([OrderedDict(given)], str(folder / INPUTS))
        if node.expected_array is not None:
            expected = np.nan_to_num(node.expected_array).astype(node.found_array.dtype)
            result = IterationResult(OrderedDict({node.output: np.ascontiguousarray(expected)}), 0.0, "reference")
            RunResults([("reference", [result])]).save(str(folder / EXPECTED))
        (folder / README).write_text(_told(node, command), encoding="utf-8")
    return command


def _command(node: GuiltyNode, tolerance: float) -> str:
    command = ["polygraphy", "run", NODE, "--onnxrt", "--load-inputs", INPUTS]
    if node.expected_array is not None:
        scale = float(np.abs(np.nan_to_num(node.expected_array)).max())
        command += ["--load-outputs", EXPECTED, "--rtol", "0", "--atol", f"{tolerance * scale:.3g}"]
    return shlex.join(command)


def _told(node: GuiltyNode, command: str) -> str:
    reads = "\n".join(f"- `{value.name}` {value.dtype} {list(value.shape)}" for value in node.inputs)
    hints = "".join(f"\n- {hint}" for hint in node.hints)
    return (
        f"# {node.operator} `{node.name}`\n\nThe first node of {node.slice} whose output is not the reference's"
        f"{'' if node.expected is None else f' `{node.expected}`'}, in case {node.case!r}.\n\nIt reads\n\n{reads}\n"
        f"{hints}\n\n`{INPUTS}` is what it read, `{EXPECTED}` what the reference has in place of `{node.output}`:\n\n"
        f"    {command}\n"
    )
