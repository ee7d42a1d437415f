"""What sessions are told on processors that add 8-bit products in 16 bits: see ``docs/adr/0028``."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from glm_export import api
from glm_export.artifacts.program import SUMS_IN_16_BITS, OnnxProgram
from glm_export.errors import EnvironmentMissingError
from glm_export.sessions.onnxruntime import runtime
from glm_export.sessions.onnxruntime.saturation import LARGEST, PRODUCT
from glm_export.spec.session_entries import EXACT_SUMS, session_entries
from tests.helpers.golden_data import GOLDEN

BEFORE = GOLDEN / "written_before"
"""Programs that say nothing of their sums."""


def before(name: str, *, fits: bool = False) -> OnnxProgram:
    """In float32; ``fits``: as if it were written now."""
    program = api.load_program(BEFORE / name)
    return replace(program, dtype="float32", manifest=program.manifest | ({SUMS_IN_16_BITS: True} if fits else {}))


@pytest.fixture
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that adds in 16 bits, or not."""
    monkeypatch.setattr(runtime, "adds_in_16_bits", lambda: request.param)


@pytest.mark.parametrize("processor", [True], indirect=True)
@pytest.mark.usefixtures("processor")
def test_integers_of_before_are_multiplied_in_16_bits() -> None:
    assert runtime.entries_of(before("tensorrt-int8")) == session_entries("int8-smoothquant") | EXACT_SUMS
    # Whatever is told besides, nothing is told where nothing is multiplied so.
    for program in (before("tensorrt-int8", fits=True), before("onnx"), before("onnx-int8-kv"), before("ort-prefix")):
        assert runtime.entries_of(program) == session_entries(program.recipe)
    half = api.load_program(BEFORE / "tensorrt-int8")
    assert (half.dtype, runtime.entries_of(half)) == ("float16", session_entries(half.recipe))


@pytest.mark.parametrize("processor", [True], indirect=True)
@pytest.mark.usefixtures("processor")
def test_what_no_entry_reaches_is_refused() -> None:
    with pytest.raises(EnvironmentMissingError, match="has no VNNI"):
        runtime.entries_of(before("ort-int4"))
    assert EXACT_SUMS.items().isdisjoint(runtime.entries_of(before("ort-int4", fits=True)).items())


@pytest.mark.parametrize("processor", [False], indirect=True)
@pytest.mark.usefixtures("processor")
@pytest.mark.parametrize("name", ["tensorrt-int8", "ort-int4"])
def test_other_processors_are_told_nothing(name: str) -> None:
    assert EXACT_SUMS.items().isdisjoint(runtime.entries_of(before(name)).items())


def test_what_is_tried_is_one_product() -> None:
    model = onnx.load_from_string(PRODUCT)
    onnx.checker.check_model(model, full_check=True)
    [node] = model.graph.node
    assert (node.op_type, list(node.input), list(node.output)) == ("MatMulInteger", ["a", "b"], ["c"])
    sums = ReferenceEvaluator(model).run(None, {"a": np.full((2, 2), 255, np.uint8)})[0]
    assert (sums == LARGEST).all()
