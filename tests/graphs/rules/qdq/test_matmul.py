"""Products between QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from glm_export.calibration.formats import decode
from glm_export.calibration.quantize import round_each_token
from glm_export.errors import InputError
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


@pytest.mark.parametrize("opset", [17, 23])
def test_each_token_is_rounded_by_its_own_largest_value(opset: int) -> None:
    """A row of zeros stays one, and an outlier in one row changes no other."""
    form = QdqWeights(per_token=True)
    before = program(PRODUCT, WEIGHTS)
    explicit = ExplicitMatMul({"weight": WeightFormats(form)}, "float32", InputNumbers(), opset)
    after = rewritten(before, explicit, stored_tensors(form, WEIGHT, "weight"), opset=opset)
    assert after.operators == {
        "Abs": 1, "ReduceMax": 1, "Max": 1, "Div": 1, "QuantizeLinear": 1, "DequantizeLinear": 2, "MatMul": 1, "Mul": 1,
    }  # fmt: skip
    x = ARRAYS["x"].copy()
    x[0, 1] = 0
    x[1, 2] *= 1e-30
    expected = round_each_token(torch.from_numpy(x)).numpy() @ decode(form, WEIGHT).numpy().T
    found = run(after.model, {"x": x})["y"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
    assert (found[0, 1] == 0).all()
    assert np.abs(found[1, 2]).max() > 0
    if opset > 17:  # the standard's own evaluator has Q/DQ from opset 19 on
        (reference,) = ReferenceEvaluator(after.model).run(None, {"x": x})
        np.testing.assert_allclose(reference, expected, rtol=1e-5, atol=1e-4)
    spoilt = x.copy()
    spoilt[0, 0, 5] = 600
    np.testing.assert_array_equal(run(after.model, {"x": spoilt})["y"][1], found[1])
    assert np.abs(found - x @ decode(form, WEIGHT).numpy().T).max() > 0.01  # the control: rounding shows


@pytest.mark.parametrize(
    "settings", [{"activations": True}, {"dtype": "int4"}, {"dtype": "float8e4m3fn"}, {"block": 32}]
)
def test_scales_by_token_are_for_int8_by_channel_alone(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="beside int8 weights with one scale per channel alone"):
        QdqWeights(per_token=True, **settings)


def test_other_weights_and_stored_ones_are_left_alone() -> None:
    assert_left_alone(program(PRODUCT, WEIGHTS), rule(QdqWeights(), name="another"))
    assert_left_alone(program(PRODUCT, WEIGHTS), rule(BlockWeights(bits=4, block=32)))


def test_another_operator_on_the_weight_is_left_alone() -> None:
    text = f"g (float[3, {ROWS}] x) => (float[3, {COLUMNS}] y) {{ y = Gemm <transB=1> (x, weight) }}"
    assert_left_alone(program(text, WEIGHTS), rule(QdqWeights()))
