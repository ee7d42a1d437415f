"""ONNX files of onnxruntime-genai's builder and of Optimum: right ones pass, and planted faults are found in them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import helper

from glm_export import api
from glm_export.cli import cli
from glm_export.errors import InputError
from tests.helpers.faults import Planting

FOREIGN = Path(__file__).parents[2] / "golden" / "foreign"
CHECKPOINT = FOREIGN / "checkpoint"


def planted(tool: str, change: Callable[[Planting], None], folder: Path) -> Path:
    shutil.copytree(FOREIGN / tool, folder)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    change(Planting(model.graph, folder))
    onnx.save(model, folder / "model.onnx")
    return folder


@pytest.mark.parametrize("tool", ["genai", "optimum"])
def test_what_another_tool_exported_is_held_to_pytorch(tool: str) -> None:
    report = api.check(FOREIGN / tool, CHECKPOINT, layers=True)
    assert report.passed
    assert report.greedy_equal == report.greedy_total > 100
    assert report.layers.first is report.layers.uncut is None
    assert {error.slice for error in report.layers.errors} == {"embedding", "layers.0", "layers.1", "layers.2", "head"}
    assert {output.case for output in report.parity.outputs} >= {"prefill", "chunk on a past", "padded batch"}


def _half_split(given: Planting) -> None:
    given.attribute("/model/layers.1/attn/GroupQueryAttention", "rotary_interleaved", 0)


def _eps(given: Planting) -> None:
    given.attribute("/model/layers.1/post_attention_layernorm/SkipLayerNorm", "epsilon", 1e-2)


def _no_rotation(given: Planting) -> None:
    """What is rotated by a quarter turn is not negated: angles of the wrong sign."""
    next(node for node in given.graph.node if node.op_type == "Neg" and "layers.1" in node.name).op_type = "Identity"


def _half_a_weight(given: Planting) -> None:
    weight = given.node("/model/layers.1/mlp/down_proj/MatMul").input[1]
    given.change(weight, lambda array: np.where(np.arange(array.shape[1]) == 5, 0, array).astype(array.dtype))


def _activation(given: Planting) -> None:
    sigmoid = next(node for node in given.graph.node if node.op_type == "Sigmoid" and "layers.1" in node.name)
    sigmoid.op_type = "HardSigmoid"


@pytest.mark.parametrize(
    ("tool", "change", "node"),
    [
        ("genai", _half_split, "/model/layers.1/attn/GroupQueryAttention"),
        ("genai", _eps, "/model/layers.1/post_attention_layernorm/"),
        ("genai", _half_a_weight, "/model/layers.1/mlp/down_proj/MatMul"),
        ("optimum", _no_rotation, "/model/layers.1/self_attn/"),
        ("optimum", _half_a_weight, "/model/layers.1/mlp/down_proj/MatMul"),
        ("optimum", _activation, "/model/layers.1/mlp/"),
    ],
)
def test_faults_in_what_another_tool_exported_are_found(
    tool: str, change: Callable[[Planting], None], node: str, tmp_path: Path
) -> None:
    report = api.check(planted(tool, change, tmp_path / "planted"), CHECKPOINT)
    assert not report.passed
    told = report.layers.sentences()
    assert report.layers.first.slice == "layers.1", told
    assert report.layers.node.name.startswith(node), told


def test_a_command_line_takes_the_file(tmp_path: Path) -> None:
    file = FOREIGN / "genai" / "model.onnx"
    result = CliRunner().invoke(cli, ["check", str(file), "--against", str(CHECKPOINT)])
    assert result.exit_code == 0, result.output
    assert "PASSED" in result.output
    broken = planted("genai", _half_split, tmp_path / "planted")
    result = CliRunner().invoke(cli, ["check", str(broken), "--against", str(CHECKPOINT)])
    assert result.exit_code == 1
    assert "first node: GroupQueryAttention /model/layers.1/attn/GroupQueryAttention" in result.output


def test_two_programs_are_held_to_each_other(demo_program: object, tmp_path: Path) -> None:
    other = api.export("demo", tmp_path / "ort", dialect="ort")
    report = api.check(other, demo_program.folder)
    assert report.passed
    assert report.parity.reference == "onnxruntime of onnx"
    assert report.layers is None
    rounded = api.export("demo", tmp_path / "int8", recipe="int8-weights")
    assert not api.check(rounded, demo_program.folder).passed  # of another recipe: quality says what that costs
    assert api.check(rounded, demo_program.folder, tolerance=0.5).parity.passed


def _renamed_output(given: Planting) -> None:
    given.graph.output[0].name = "scores"
    next(node for node in given.graph.node if "logits" in node.output).output[0] = "scores"


def _strange_input(given: Planting) -> None:
    given.graph.input.append(helper.make_tensor_value_info("beam", onnx.TensorProto.INT64, [1]))


@pytest.mark.parametrize(
    ("change", "told"),
    [(_renamed_output, "should have logits, as a decoder of 3 layers"), (_strange_input, "takes beam, which is not")],
)
def test_what_is_no_decoder_under_the_names_is_refused(
    change: Callable[[Planting], None], told: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=told):
        api.check(planted("genai", change, tmp_path / "planted"), CHECKPOINT)


def test_other_sizes_and_no_onnx_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="should have past_key_values"):
        api.check(FOREIGN / "genai", "demo")
    text = tmp_path / "model.onnx"
    text.write_text("no ONNX")
    with pytest.raises(InputError, match="should be an ONNX file"):
        api.check(text, CHECKPOINT)
    with pytest.raises(InputError, match="hold both files to their checkpoint"):
        api.check(FOREIGN / "genai", FOREIGN / "optimum" / "model.onnx")
