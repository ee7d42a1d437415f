"""A second form of weights, for prompts, within a stated memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

from glm_export import api
from glm_export.artifacts.program import PROMPT_LAYERS, OnnxProgram
from glm_export.cli import cli
from glm_export.errors import InputError
from glm_export.exporter.options import resolve_options
from glm_export.exporter.plan import prompt_form_bytes

RECIPE = "int4-int8-prompt"


def conditions(program: OnnxProgram) -> int:
    return sum(node.op_type == "If" for node in ir.load(program.model_path).graph)


def test_as_many_layers_as_fit(tmp_path: Path) -> None:
    checkpoint = api.open_checkpoint("demo")
    whole = resolve_options(checkpoint, dialect="ort", recipe=RECIPE).quantization
    assert whole is not None
    each = prompt_form_bytes(checkpoint.config, whole)
    assert len(set(each)) == 1
    sizes, found = {}, {}
    for layers in (0, 1, 3, 4):
        gigabytes = (layers + 0.5) * each[0] / 1e9
        program = api.export(
            "demo", tmp_path / str(layers), dialect="ort", recipe=RECIPE, prefill_memory=gigabytes, logits="all"
        )
        assert program.manifest[PROMPT_LAYERS] == layers
        assert conditions(program) == 4 * layers
        assert api.check(program, "demo").passed
        sizes[layers] = program.manifest["sizes"]["model.onnx.data"]
        with api.load_session(program) as session:
            feeds = session.feeds([session.prompt(session.encode("千山鸟飞绝，万径人踪灭。"))])
            found[layers] = session.prefill(feeds)
    assert sizes[3] - sizes[1] == pytest.approx(2 * each[0], rel=0.01)
    # The control: fewer layers with the other form are other numbers.
    assert not np.array_equal(found[0], found[4])
    unlimited = api.export("demo", tmp_path / "all", dialect="ort", recipe=RECIPE, logits="all")
    assert PROMPT_LAYERS not in unlimited.manifest
    assert unlimited.manifest["sizes"]["model.onnx.data"] == sizes[4]


def test_on_the_command_line(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    asked = ["export", "demo", "--out", out, "--dialect", "ort", "--recipe", RECIPE, "--prefill-memory", "0.0000001"]
    assert CliRunner().invoke(cli, asked, catch_exceptions=False).exit_code == 0
    program = api.load_program(tmp_path / "out")
    assert (program.manifest[PROMPT_LAYERS], conditions(program)) == (0, 0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"recipe": "int8-token"}, "is for recipes with a form for prompts .int4-int8-prompt."),
        ({}, "is for recipes with a form for prompts"),
        ({"recipe": RECIPE, "prefill_memory": -1.0}, "should be gigabytes, 0 or more; found -1.0"),
        ({"recipe": RECIPE, "prefill_memory": float("nan")}, "should be gigabytes, 0 or more; found nan"),
    ],
)
def test_what_makes_no_sense(options: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"--prefill-memory {said}"):
        api.export("demo", tmp_path / "out", dialect="ort", **({"prefill_memory": 1.0} | options))
