"""Planted faults: each is detected, in its layer and at its node."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from glm_export.artifacts.program import OnnxProgram
from tests.helpers.faults import FAULTS, plant
from tests.proof.layers.conftest import Verdict


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_where_it_is(
    name: str, demo_program: OnnxProgram, judged: Callable[[OnnxProgram], Verdict], tmp_path: Path
) -> None:
    fault = FAULTS[name]
    verdict = judged(plant(demo_program, fault, tmp_path / "planted"))
    assert not verdict.parity.passed
    layers = verdict.layers
    assert layers.first is not None
    assert layers.first.slice == fault.slice
    assert layers.node is not None, layers.sentences()
    assert layers.node.name.startswith(fault.nodes), layers.sentences()


def test_control_without_a_fault_nobody_is_guilty(
    demo_program: OnnxProgram, judged: Callable[[OnnxProgram], Verdict]
) -> None:
    verdict = judged(demo_program)
    assert verdict.parity.passed
    assert verdict.layers.first is None
    assert verdict.layers.errors
