"""Changes that leave the numbers alone: nothing fails, and nobody is guilty."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch

from glm_export import api
from glm_export.artifacts.program import OnnxProgram, load_program
from glm_export.sessions.onnxruntime.session import OrtSession
from tests.helpers.faults import plant
from tests.helpers.harmless import HARMLESS, optimized
from tests.helpers.recorded import recorded_again
from tests.proof.layers.conftest import Judge, Verdict

Judged = Callable[..., Verdict]


def nobody_is_guilty(verdict: Verdict) -> None:
    assert verdict.parity.passed
    assert verdict.layers.uncut is None
    assert verdict.layers.first is None, verdict.layers.sentences()
    assert len({error.slice for error in verdict.layers.errors}) == 6


@pytest.mark.parametrize("name", HARMLESS)
def test_a_harmless_change_fails_nothing(name: str, demo_program: OnnxProgram, judged: Judged, tmp_path: Path) -> None:
    nobody_is_guilty(judged(plant(demo_program, HARMLESS[name], tmp_path / "changed")))


@pytest.mark.parametrize("level", ["ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED"])
def test_what_onnxruntime_makes_of_it_fails_nothing(
    level: str, demo_program: OnnxProgram, judged: Judged, tmp_path: Path
) -> None:
    folder = shutil.copytree(demo_program.folder, tmp_path / "optimized")
    optimized(level)(folder)
    recorded_again(folder)
    nobody_is_guilty(judged(load_program(folder)))


@pytest.mark.parametrize("dialect", ["ort", "portable", "tensorrt"])
def test_another_dialect_fails_nothing(dialect: str, judged: Judged, tmp_path: Path) -> None:
    length = {"max_length": 96} if dialect == "tensorrt" else {}
    nobody_is_guilty(judged(api.export("demo", tmp_path / "out", dialect=dialect, **length)))


def test_another_opset_fails_nothing(demo_program: OnnxProgram, judged: Judged, tmp_path: Path) -> None:
    folder = shutil.copytree(demo_program.folder, tmp_path / "later")
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    assert model.opset_import[0].version == 23
    model.opset_import[0].version = 24
    onnx.save(model, str(folder / "model.onnx"))
    recorded_again(folder)
    nobody_is_guilty(judged(load_program(folder)))


@pytest.mark.parametrize("threads", [1, 3])
def test_another_count_of_threads_fails_nothing(threads: int, demo_program: OnnxProgram, judged: Judge) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with OrtSession(demo_program, threads=threads) as candidate:
            nobody_is_guilty(judged.of(candidate))
    finally:
        torch.set_num_threads(before)
