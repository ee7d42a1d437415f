"""The embedded model: it knows its poems, on both sides, and the demo shows it."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.cli import cli
from glm_export.embedded import DEMO, DEMO_GLM, FOLDERS, poems
from glm_export.evaluation.recall import fill_recall, recall


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


def test_checkpoints_are_small_and_official() -> None:
    for name, family, tensor in (
        (DEMO, "chatglm2", "transformer.encoder.layers.0.self_attention.query_key_value.weight"),
        (DEMO_GLM, "glm_infilling", "transformer.block_position_embeddings.weight"),
    ):
        assert sum(path.stat().st_size for path in FOLDERS[name].iterdir()) < 10_000_000
        checkpoint = api.open_checkpoint(name)
        checkpoint.audit()
        assert checkpoint.config.family == family
        assert tensor in checkpoint.weight_of


def test_blanked_lines_are_filled_alike_in_both_runtimes(tmp_path: Path) -> None:
    with api.load_session(DEMO_GLM) as reference, api.load_session(api.export(DEMO_GLM, tmp_path / "glm")) as session:
        there, here = fill_recall(reference, poems()), fill_recall(session, poems())
        assert there == here
        assert there.total == 276
        assert there.exact >= 260  # 268 when it was trained
        filled = api.infill(session, "春眠不觉晓，处处闻啼鸟。[sMASK]")
        assert filled.text == "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。"
        scores = api.score(session, "疑是地上霜。", pattern="床前明月[MASK]，{}", labels=["山", "光", "人"])
        assert scores[0].label == "光"


def test_the_demo_command(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["demo", "--out", str(tmp_path / "demo")], catch_exceptions=False)
    assert result.exit_code == 0
    assert result.stdout.count("PASSED") == 2
    for part in (
        "孤舟蓑笠翁，独钓寒江雪。",
        "夜来风雨声，花落知多少。",
        "exact",
        "which word fits?",
        "recited exactly: PyTorch 313 of 313, ONNX Runtime 313 of 313",
        "blanked lines filled exactly",
    ):
        assert part in result.stdout
    # A second run replaces the first.
    assert CliRunner().invoke(cli, ["demo", "--out", str(tmp_path / "demo")]).exit_code == 0


def test_half_precision_still_recites(tmp_path: Path) -> None:
    for dtype in ("float16", "bfloat16"):
        with api.load_session(api.export("demo", tmp_path / dtype, dtype=dtype)) as session:
            result = recall(session, poems()[:60])
        assert result.exact >= 0.98 * result.total
