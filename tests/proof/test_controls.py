"""`check --control`: broken variants fail, each; and one that is not noticed fails the check."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.cli import cli
from glm_export.errors import InputError
from glm_export.proof import controls
from glm_export.sessions.session import Tensors
from tests.helpers.golden_data import Golden

CACHES = {"padding is seen", "keys and values exchanged", "a stale layer's cache", "a neighbour's cache"}


def test_every_broken_variant_is_noticed(demo_program: OnnxProgram) -> None:
    report = api.check(demo_program, "demo", control=True)
    assert report.passed
    names = {control.name for control in report.controls}
    assert names == CACHES | {"positions at half their place", "half-split rotary", "unscaled scores"}
    assert all(control.needed > 1000 * control.bound for control in report.controls)


@pytest.mark.parametrize("name", ["glm", "glm4_moe"])
def test_of_other_families(name: str, tmp_path: Path) -> None:
    program = api.export(Golden(name).folder, tmp_path / "out", dialect="ort")
    report = api.check(program, Golden(name).folder, control=True)
    assert report.passed
    assert {control.name for control in report.controls} >= CACHES


def test_one_that_is_not_noticed_fails_the_check(demo_program: OnnxProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    def harmless(tensors: Tensors, _: int) -> Tensors:
        return dict(tensors)

    monkeypatch.setitem(controls.ASKED, "nothing at all", harmless)
    result = CliRunner().invoke(cli, ["check", str(demo_program.folder), "--against", "demo", "--control"])
    assert result.exit_code == 1
    assert "control, nothing at all: " in result.output
    assert "NOT NOTICED" in result.output
    assert "control, half-split rotary" in result.output


def test_texts_of_a_corpus(demo_program: OnnxProgram) -> None:
    report = api.check(demo_program, "demo", corpus="poems", max_samples=2)
    assert report.passed
    texts = [token for token in report.tokens if token.case == "text 1"]
    assert len(texts) > 20
    assert {output.case for output in report.parity.outputs} >= {"text 1", "text 2"}
    with pytest.raises(InputError, match="--corpus needs a checkpoint's tokenizer"):
        api.check(demo_program, demo_program.folder, corpus="poems")
