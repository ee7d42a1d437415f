"""Blocks of another size and a head of fewer bits: in the program, in its proof, and behind calibration."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

from glm_export import api
from glm_export.artifacts.program import BLOCK_OPTIONS, OnnxProgram
from glm_export.calibration import recipes
from glm_export.cli import cli
from glm_export.errors import InputError
from glm_export.exporter.options import ExportOptions, resolve_options
from glm_export.spec.weight_formats import BlockWeights, QdqWeights


def products(program: OnnxProgram) -> dict[str, tuple[int, int]]:
    """Bits and block of every product of stored integers, by its weight."""
    nodes = onnx.load(str(program.model_path), load_external_data=False).graph.node
    found = {}
    for node in nodes:
        if node.op_type == "MatMulNBits":
            values = {attribute.name: attribute.i for attribute in node.attribute}
            found[node.input[1]] = (values["bits"], values["block_size"])
    return found


def test_the_program_and_its_proof(tmp_path: Path) -> None:
    program = api.export(
        "demo", tmp_path / "coarse", dialect="ort", recipe="int4-weights", block_size=128, head_bits=4, logits="all"
    )
    assert set(products(program).values()) == {(4, 128)}
    assert program.manifest[BLOCK_OPTIONS] == {"block_size": 128, "head_bits": 4}
    assert api.check(program, "demo").passed
    usual = api.export("demo", tmp_path / "usual", dialect="ort", recipe="int4-weights", logits="all")
    assert sorted(set(products(usual).values())) == [(4, 64), (8, 128)]
    assert BLOCK_OPTIONS not in usual.manifest
    assert program.manifest["sizes"]["model.onnx.data"] < usual.manifest["sizes"]["model.onnx.data"]
    # The control: a proof that rounds in the recipe's own blocks does not fit this program.
    forged = Path(shutil.copytree(program.folder, tmp_path / "forged"))
    manifest = json.loads((forged / "manifest.json").read_text(encoding="utf-8"))
    del manifest[BLOCK_OPTIONS]
    (forged / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert not api.check(forged, "demo").passed


def test_the_command_line_and_what_a_folder_says(tmp_path: Path) -> None:
    out, runner = str(tmp_path / "out"), CliRunner()
    asked = ["export", "demo", "--out", out, "--recipe", "int4-weights", "--block-size", "32"]
    assert runner.invoke(cli, asked, catch_exceptions=False).exit_code == 0
    facts = json.loads(runner.invoke(cli, ["inspect", out, "--json"], catch_exceptions=False).stdout)
    assert (facts["recipe"], facts["block_size"], facts["head_bits"]) == ("int4-weights", 32, 8)
    assert api.check(tmp_path / "out", "demo").passed


def test_forms_of_every_dialect() -> None:
    recipe = recipes.load("int4-weights")
    shaped = recipe.with_blocks(128, 4)
    assert (shaped.layers, shaped.head) == (BlockWeights(bits=4, block=128), BlockWeights(bits=4, block=128))
    assert (shaped.explicit, shaped.explicit_head) == (
        QdqWeights(dtype="int4", block=128),
        QdqWeights(dtype="int4", block=128),
    )
    assert shaped.experts == recipe.experts
    assert recipe.with_blocks(64, 8) == recipe == recipe.with_blocks()
    # A head keeps blocks of its own, unless it is stored as the layers are.
    assert recipe.with_blocks(32).head == recipe.head
    for name in ("int8-weights", "int8-weights-block"):
        coarse = recipes.load(name).with_blocks(32)
        assert (coarse.head, coarse.explicit_head) == (coarse.layers, coarse.explicit)


def test_weights_that_calibration_rounds(tmp_path: Path) -> None:
    ranges = api.calibrate(
        "demo", tmp_path / "ranges", recipe="int4-gptq", block_size=128, corpus="poems", max_samples=8
    )
    assert ranges.rounded_in == 128
    # Export takes the blocks they were rounded in, and no others.
    program = api.export("demo", tmp_path / "out", dialect="ort", recipe="int4-gptq", ranges=ranges, logits="all")
    assert set(products(program).values()) == {(4, 128), (8, 128)}
    assert program.manifest[BLOCK_OPTIONS] == {"block_size": 128, "head_bits": 8}
    assert api.check(program, "demo").passed
    with pytest.raises(InputError, match="rounded in blocks of 128, --block-size 32 is asked for"):
        api.export("demo", tmp_path / "no", dialect="ort", recipe="int4-gptq", ranges=ranges, block_size=32)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            ExportOptions(block_size=32),
            "--block-size is for recipes in blocks .int4-awq.*found no recipe in dialect onnx",
        ),
        (ExportOptions(recipe="int8-token", block_size=32), "--block-size is for recipes in blocks"),
        (
            ExportOptions(recipe="int8-weights", head_bits=4),
            "--head-bits is for .*found int8-weights in dialect onnx",
        ),
        (
            ExportOptions(recipe="int4-weights", block_size=48),
            "in blocks of 16, 32, 64, 128 or 256; found 4 bits in blocks of 48",
        ),
        (
            ExportOptions(recipe="int4-weights", dialect="ort", head_bits=6),
            "have 4 or 8 bits, .* found 6 bits in blocks of 64",
        ),
    ],
)
def test_what_makes_no_sense(asked: ExportOptions, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve_options(api.open_checkpoint("demo").config, asked)


def test_calibration_has_blocks_where_it_rounds_alone(tmp_path: Path) -> None:
    for options in ({}, {"recipe": "int4-awq"}):
        with pytest.raises(InputError, match="--block-size is for a --recipe that has weights rounded here"):
            api.calibrate("demo", tmp_path / "ranges", block_size=32, **options)
