"""Products between QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from glm_export.calibration.formats import decode
from glm_export.graphs.rules.qdq.matmul import ExplicitMatMul, InputNumbers
from glm_export.spec.weight_formats import BlockWeights, QdqWeights, WeightFormats
from tests.helpers.small_programs import assert_left_alone, program, random_arrays, rewritten, run, stored_tensors

ROWS, COLUMNS = 16, 64
ARRAYS = random_arrays(0, weight=(ROWS, COLUMNS), x=(2, 3, COLUMNS))
WEIGHT = torch.from_numpy(ARRAYS["weight"])
WEIGHTS = {"weight": ARRAYS["weight"].T.copy()}
PRODUCT = f"g (float[B, S, {COLUMNS}] x) => (float[B, S, {ROWS}] y) {{ y = MatMul (x, weight) }}"


def rule(form: QdqWeights | BlockWeights, name: str = "weight", numbers: InputNumbers | None = None) -> ExplicitMatMul:
    return ExplicitMatMul({name: WeightFormats(form)}, "float32", numbers or InputNumbers())


@pytest.mark.parametrize("form", [QdqWeights(), QdqWeights(block=32), QdqWeights(dtype="int4", block=16)], ids=str)
def test_numbers(form: QdqWeights) -> None:
    """As ONNX Runtime and the standard's own evaluator read them."""
    before = program(PRODUCT, WEIGHTS)
    after = rewritten(before, rule(form), stored_tensors(form, WEIGHT, "weight"))
    assert (after.fired, after.reasons) == (1, [])
    assert after.operators == {"DequantizeLinear": 1, "MatMul": 1}
    expected = ARRAYS["x"] @ decode(form, WEIGHT).numpy().T
    np.testing.assert_allclose(run(after.model, ARRAYS)["y"], expected, atol=1e-5)
    (reference,) = ReferenceEvaluator(after.model).run(None, {"x": ARRAYS["x"]})
    np.testing.assert_allclose(reference, expected, atol=1e-5)
    assert np.abs(expected - run(before, ARRAYS)["y"]).max() > 0.01  # the control: rounding shows


def test_inputs_are_divided_and_rounded_where_calibrated() -> None:
    form, scale = QdqWeights(activations=True), 0.02
    divisors = np.linspace(0.5, 2, COLUMNS).astype(np.float32)
    numbers = InputNumbers(scales={"weight": scale}, divisors={"weight": divisors})
    after = rewritten(program(PRODUCT, WEIGHTS), rule(form, numbers=numbers), stored_tensors(form, WEIGHT, "weight"))
    assert after.operators == {"Mul": 1, "QuantizeLinear": 1, "DequantizeLinear": 2, "MatMul": 1}
    smoothed = ARRAYS["x"] * (1 / divisors)
    rounded = np.clip(np.round(smoothed / np.float32(scale)), -128, 127) * np.float32(scale)
    kept = decode(form, WEIGHT).numpy().T
    found = run(after.model, ARRAYS)["y"]
    np.testing.assert_allclose(found, rounded @ kept, atol=1e-4)
    # The control: 127 steps of 0.02 do not hold every input, and the rounding of the others shows.
    assert np.abs(found - smoothed @ kept).max() > 0.1


def test_other_weights_and_stored_ones_are_left_alone() -> None:
    assert_left_alone(program(PRODUCT, WEIGHTS), rule(QdqWeights(), name="another"))
    assert_left_alone(program(PRODUCT, WEIGHTS), rule(BlockWeights(bits=4, block=32)))


def test_another_operator_on_the_weight_is_left_alone() -> None:
    text = f"g (float[3, {ROWS}] x) => (float[3, {COLUMNS}] y) {{ y = Gemm <transB=1> (x, weight) }}"
    assert_left_alone(program(text, WEIGHTS), rule(QdqWeights()))
