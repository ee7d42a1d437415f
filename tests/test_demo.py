"""The embedded model: it knows its poems, on both sides, and the demo shows it."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from glm_export import api
from glm_export.artifacts import OnnxProgram
from glm_export.cli import cli
from glm_export.demo import demo_folder, poems, recall


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_every_next_line_is_recited(runtime: str, demo_program: OnnxProgram) -> None:
    with api.load_session("demo" if runtime == "torch" else demo_program) as session:
        result = recall(session, poems())
    assert (result.exact, result.total) == (313, 313)


def test_recall_can_fail(demo_program: OnnxProgram) -> None:
    from dataclasses import replace

    known = [replace(poem, lines=(poem.lines[0], "不是这一句。")) for poem in poems()[:5]]
    with api.load_session(demo_program) as session:
        assert recall(session, known).exact == 0


def test_checkpoint_is_small_and_official() -> None:
    folder = demo_folder()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 10_000_000
    checkpoint = api.open_checkpoint("demo")
    checkpoint.audit()
    assert checkpoint.config.family == "chatglm2"
    assert "transformer.encoder.layers.0.self_attention.query_key_value.weight" in checkpoint.weight_of


def test_the_demo_command(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["demo", "--out", str(tmp_path / "demo")], catch_exceptions=False)
    assert result.exit_code == 0
    for part in ("PASSED", "孤舟蓑笠翁，独钓寒江雪。", "exact", "PyTorch 313 of 313, ONNX Runtime 313 of 313"):
        assert part in result.stdout
    # A second run replaces the first.
    assert CliRunner().invoke(cli, ["demo", "--out", str(tmp_path / "demo")]).exit_code == 0


def test_half_precision_still_recites(tmp_path: Path) -> None:
    for dtype in ("float16", "bfloat16"):
        with api.load_session(api.export("demo", tmp_path / dtype, dtype=dtype)) as session:
            result = recall(session, poems()[:60])
        assert result.exact >= 0.98 * result.total
