"""A check in the memory of one layer: the same cases and verdicts, and neither side is ever whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.errors import InputError
from glm_export.sessions import torch as torch_sessions
from glm_export.sessions.onnxruntime import session as ort_sessions
from tests.helpers.faults import FAULTS, plant
from tests.helpers.golden_data import Golden
from tests.helpers.golden_folders import folder


@pytest.fixture(autouse=True)
def nothing_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise AssertionError("a whole model was loaded")

    monkeypatch.setattr(torch_sessions, "load_reference", fails)
    monkeypatch.setattr(ort_sessions, "inference_session", fails)


@pytest.mark.parametrize("name", ["chatglm2", "glm4_moe", "glm", "chatglm"])
def test_the_verdict_of_every_kind(name: str, exported: Callable[[str], OnnxProgram]) -> None:
    report = api.check(exported(name), Golden(name).folder, layer_by_layer=True)
    assert report.passed
    assert 0 < report.parity.required_tolerance < 3e-6
    assert {output.case for output in report.parity.outputs} == {
        "prefill", "chunk on a past", "decode", "padded batch", "batch decode", "end of context",
    }  # fmt: skip
    assert report.layers.first is None
    assert len(report.tokens) > 60


@pytest.mark.parametrize("options", [{"dialect": "ort", "recipe": "int8-token"}, {"dtype": "bfloat16"}])
def test_rounded_programs(options: dict[str, str], tmp_path: Path) -> None:
    program = api.export("demo", tmp_path / "out", **options)
    assert api.check(program, "demo", layer_by_layer=True).passed


def test_a_prefix_is_begun_with(tmp_path: Path) -> None:
    source = folder("ptuning_full_chatglm2")
    program = api.export(source, tmp_path / "out")
    assert api.check(program, source, layer_by_layer=True).passed


def test_a_fault_fails_and_is_found(demo_program: OnnxProgram, tmp_path: Path) -> None:
    fault = FAULTS["norm eps"]
    report = api.check(plant(demo_program, fault, tmp_path / "planted"), "demo", layer_by_layer=True)
    assert not report.passed
    assert report.layers.first.slice == fault.slice
    assert report.layers.node.name.startswith(fault.nodes)


def test_what_it_cannot_do_is_said(demo_program: OnnxProgram, tmp_path: Path) -> None:
    for options in ({"layer_by_layer": True}, {"layers": True}, {"evidence": str(tmp_path / "node")}):
        with pytest.raises(InputError, match=r"is for a program and its checkpoint: .*; leave it out"):
            api.check(demo_program, demo_program.folder, **options)
    for options in ({"control": True}, {"corpus": "poems"}, {"save_run": str(tmp_path / "run")}):
        with pytest.raises(InputError, match="loaded whole; leave it out"):
            api.check(demo_program, "demo", layer_by_layer=True, **options)
