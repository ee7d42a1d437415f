"""W8A8 three ways: the table of where paper, ONNX Runtime and PyTorch may differ, and faults that must show in it."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.checkpoints.checkpoint import Checkpoint
from glm_export.proof.on_paper import Arithmetic
from tests.helpers.walked import one_thread, poems

sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "quantize"))
integers = import_module("integers")
Source = tuple[OnnxProgram, Checkpoint]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    root, checkpoint = tmp_path_factory.mktemp("integers"), api.open_checkpoint("demo")
    ranges = api.calibrate(checkpoint, root / "ranges", corpus=poems(checkpoint, 4))
    return api.export(checkpoint, root / "program", recipe="int8-static", ranges=ranges), checkpoint


def test_the_three_agree_and_faults_show(source: Source) -> None:
    with one_thread():
        rows = integers.measure(*source)
    assert integers.failures(rows) == []
    found = {(row.where, row.sides): row for row in rows}
    for sides in ("paper, ONNX Runtime", "paper, PyTorch"):
        same = found["input rounded, the same input", sides]
        assert (same.moved, same.integers > 500_000) == (0, True)
        assert found["product, the same input", sides].share <= integers.SAME_PRODUCT
    # What a kernel may do otherwise moves an integer by one step, and a fault by many.
    assert found["float16 input, divided in float16", "documented, otherwise"].steps == 1
    assert found["control: saturates at 255", "planted inputs"].steps == 128
    assert integers.table(rows).count("\n") == len(rows) + 1


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (Arithmetic(ties="away"), "input rounded, the same input (paper, ONNX Runtime): should move none"),
        (Arithmetic(low=0, high=255), "whole model (paper, PyTorch): should be 0.01 apart at most"),
        (Arithmetic(scaling="float16"), "product, the same input (paper, PyTorch): should be 1e-06 apart at most"),
    ],
)
def test_control_a_fault_on_paper_fails_the_command(how: Arithmetic, said: str, source: Source) -> None:
    with one_thread():
        found = integers.failures(integers.measure(*source, how))
    assert any(said in line for line in found), found
