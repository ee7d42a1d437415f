"""Faults in experts, integers, half precision and other dialects: through ``check`` as people call it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.errors import ComparisonFailedError, InputError
from glm_export.proof.check import CheckReport
from tests.helpers.faults import Planting, plant
from tests.helpers.golden_data import Golden
from tests.helpers.overflowing import Weights, export, measured, queries


def guilty(report: CheckReport, part: str, *nodes: str) -> list[str]:
    """What is told of a failed check whose guilty slice and node are these."""
    assert not report.passed
    assert report.layers is not None
    told = report.layers.sentences()
    assert report.layers.first is not None, told
    assert report.layers.first.slice == part, told
    assert report.layers.node is not None, told
    assert report.layers.node.name.startswith(nodes), told
    return told


def _swapped_experts(given: Planting) -> None:
    given.change("layers.1.mlp.down", lambda weight: weight[[1, 0, *range(2, len(weight))]])


def _no_choice_bias(given: Planting) -> None:
    given.change("layers.1.mlp.choice_bias", np.zeros_like)


@pytest.mark.parametrize(
    ("change", "node"),
    [(_swapped_experts, "layers.1.mlp/MatMul_1"), (_no_choice_bias, "layers.1.mlp/Add")],
    ids=["expert swapped", "router bias dropped"],
)
def test_experts(
    change: Callable[[Planting], None], node: str, exported: Callable[[str], OnnxProgram], tmp_path: Path
) -> None:
    program = plant(exported("glm4_moe"), change, tmp_path / "planted")
    guilty(api.check(program, Golden("glm4_moe").folder), "layers.1", node)


def _channel_scale(given: Planting) -> None:
    def larger(scales: np.ndarray) -> np.ndarray:
        scales[3] *= 1.1
        return scales

    given.change("layers.1.mlp.down.weight.scales", larger)


def _zero_point(given: Planting) -> None:
    node = next(node for node in given.graph.node if node.name == "layers.1.mlp.down/MatMul/DequantizeLinear_1")
    node.input.append(given.constant(np.ones(192, np.int8)))


@pytest.mark.parametrize("change", [_channel_scale, _zero_point])
def test_integers(change: Callable[[Planting], None], tmp_path: Path) -> None:
    program = api.export("demo", tmp_path / "out", recipe="int8-weights")
    assert api.check(program, "demo", layers=True).layers.first is None
    report = api.check(plant(program, change, tmp_path / "planted"), "demo")
    guilty(report, "layers.1", "layers.1.mlp.down/MatMul/DequantizeLinear")


def _half_split(given: Planting) -> None:
    attention = [node for node in given.graph.node if node.op_type == "GroupQueryAttention"][1]
    given.attribute(attention.name, "rotary_interleaved", 0)


def _written_early(given: Planting) -> None:
    """Keys are written one column before their place."""
    scatter = [node.name for node in given.graph.node if node.op_type == "TensorScatter"][2]
    before = given.insert(scatter, "Sub", [given.node(scatter).input[2], given.constant(np.array(1))])
    given.node(scatter).input[2] = given.insert(scatter, "Max", [before, given.constant(np.array(0))])


def _rotated_base(given: Planting) -> None:
    """In primitives: the angles of every layer."""
    given.change("cos", lambda table: np.roll(table, 1, axis=1))


@pytest.mark.parametrize(
    ("dialect", "change", "part", "nodes"),
    [
        ("ort", _half_split, "layers.1", ("layers.1.attention/Attention/GroupQueryAttention",)),
        ("tensorrt", _written_early, "layers.1", ("layers.1.attention/Attention/TensorScatter",)),
        ("portable", _rotated_base, "layers.0", ("layers.0.attention/RotaryEmbedding/Gather",)),
    ],
)
def test_dialects(
    dialect: str, change: Callable[[Planting], None], part: str, nodes: tuple[str, ...], tmp_path: Path
) -> None:
    length = {"max_length": 96} if dialect == "tensorrt" else {}
    program = api.export("demo", tmp_path / "out", dialect=dialect, **length)
    guilty(api.check(plant(program, change, tmp_path / "planted"), "demo"), part, *nodes)


def test_float16_that_overflows_is_said_to(tmp_path: Path) -> None:
    model = Weights("chatglm2")
    queries(model)
    found = measured(tmp_path, model)
    program = export(found, tmp_path / "out", "onnx", ranges=False)
    told = guilty(api.check(program, found[0]), "layers.0", "layers.0.attention.qkv/MatMul")
    assert any("values are NaN or infinite" in line for line in told), told


def test_the_node_alone_shows_it(demo_program: OnnxProgram, tmp_path: Path) -> None:
    """Polygraphy runs the saved command, and fails; with the program's own output for the reference's it passes."""

    def half_split(given: Planting) -> None:
        given.attribute("layers.1.attention/RotaryEmbedding", "interleaved", 0)

    program, out = plant(demo_program, half_split, tmp_path / "planted"), tmp_path / "evidence"
    report = api.check(program, "demo", evidence=str(out))
    assert report.layers.command.startswith(f"cd {out} && polygraphy run node.onnx --onnxrt")
    assert [node.op_type for node in onnx.load(out / "node.onnx").graph.node] == ["RotaryEmbedding"]
    command = report.layers.command.replace("polygraphy", str(Path(sys.executable).with_name("polygraphy")), 1)
    failed = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert "Accuracy Summary" in failed.stdout + failed.stderr
    again = command.split(" --load-outputs")[0] + " --save-outputs found.json"
    subprocess.run(again, shell=True, capture_output=True, check=True)
    passed = command.replace("expected.json", "found.json")
    assert subprocess.run(passed, shell=True, capture_output=True, check=False).returncode == 0
    with pytest.raises(InputError, match="exists"):
        api.check(program, "demo", evidence=str(out))


def test_a_program_that_stops_is_said_to_in_one_line(demo_program: OnnxProgram, tmp_path: Path) -> None:
    def beyond(given: Planting) -> None:
        rotary = "layers.1.attention/RotaryEmbedding"
        far = given.insert(rotary, "Add", ["position_ids", given.constant(np.array(100_000))])
        given.node(rotary).input[3] = far

    with pytest.raises(ComparisonFailedError, match=r"stops in ONNX Runtime: .*layers.1.attention/RotaryEmbedding"):
        api.check(plant(demo_program, beyond, tmp_path / "planted"), "demo")


def test_the_report_as_json(demo_program: OnnxProgram) -> None:
    values = json.loads(json.dumps(api.check(demo_program, "demo", layers=True).to_json()))["layers"]
    assert values["first"] is values["node"] is values["uncut"] is None
    assert {error["slice"] for error in values["errors"]} == {"embedding", *(f"layers.{i}" for i in range(4)), "head"}
    assert all(0 <= error["alone"][name] < 1e-5 for error in values["errors"] for name in error["alone"])
