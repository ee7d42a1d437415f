"""Runs that are saved and compared later: by other programs, by other runs, without the model that made them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from polygraphy.comparator import RunResults

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.errors import InputError
from glm_export.proof.compare import EmptyComparisonError
from glm_export.proof.sides.saved_run import load_run
from glm_export.sessions import torch as torch_sessions
from tests.helpers.faults import FAULTS, plant
from tests.helpers.golden_data import Golden


@pytest.fixture(scope="module")
def run(demo_program: OnnxProgram, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert api.check(demo_program, "demo", save_run=str(out)).passed
    return out


@pytest.fixture
def without_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can run the checkpoint, as on a machine that has none."""

    def fails(*_: object, **__: object) -> None:
        raise AssertionError("PyTorch was asked")

    monkeypatch.setattr(torch_sessions.TorchSession, "__init__", fails)


@pytest.mark.usefixtures("without_pytorch")
def test_a_program_is_held_to_a_saved_run(run: Path, demo_program: OnnxProgram, tmp_path: Path) -> None:
    report = api.check(demo_program, run)
    assert report.passed
    assert report.parity.reference == "pytorch, saved"
    assert {output.case for output in report.parity.outputs} == {case.name for case in load_run(run).cases}
    assert report.not_asked == ()
    other = api.export("demo", tmp_path / "ort", dialect="ort")
    report = api.check(other, run, save_run=str(tmp_path / "later"))
    assert report.passed
    (told,) = report.not_asked
    assert told.startswith("end of context: its positions are not its columns")
    assert api.check(tmp_path / "later", run).passed
    broken = plant(demo_program, FAULTS["half-split rotary"], tmp_path / "planted")
    assert not api.check(broken, run).passed
    api.check(broken, run, save_run=str(tmp_path / "broken"))
    assert not api.check(tmp_path / "broken", run).passed


def test_the_files_are_polygraphys(run: Path) -> None:
    ((name, answers),) = RunResults.load(str(run / "reference.json"))
    assert name == "pytorch"
    assert len(answers) == len(json.loads((run / "run.json").read_text())["cases"]) == 6


def test_what_cannot_be_compared_is_said(run: Path, demo_program: OnnxProgram, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="answers nothing else"):
        api.check(run, demo_program.folder)
    with pytest.raises(InputError, match=r"should be the same model, and vocab_size is"):
        api.check(api.export(Golden("chatglm2").folder, tmp_path / "other"), run)
    with pytest.raises(InputError, match="exists"):
        api.check(demo_program, "demo", save_run=str(run))
    short = api.export("demo", tmp_path / "short", dialect="tensorrt", max_length=2)
    with pytest.raises(EmptyComparisonError, match="no case of the saved run can be asked: prefill: 33 tokens"):
        api.check(short, run)


@pytest.mark.parametrize("file", ["run.json", "inputs.json", "reference.json"])
def test_a_damaged_run_is_one_line(file: str, run: Path, demo_program: OnnxProgram, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in run.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / file).write_bytes((copy / file).read_bytes()[:-200])
    with pytest.raises(InputError, match="should be a saved run, and cannot be read") as raised:
        api.check(demo_program, copy)
    assert "\n" not in str(raised.value)
