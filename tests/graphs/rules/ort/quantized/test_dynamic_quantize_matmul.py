"""Products with int8 weights whose inputs are rounded as they come."""

from __future__ import annotations

import numpy as np
import torch

from glm_export.calibration.formats import decode
from glm_export.graphs.rules.ort.quantized import dynamic_quantize_matmul
from glm_export.graphs.rules.ort.quantized.quantized_matmul import QuantizedMatMul
from glm_export.graphs.rules.qdq.matmul import InputNumbers
from glm_export.spec.weight_formats import ChannelWeights, WeightFormats
from tests.helpers.small_programs import program, random_arrays, rewritten, run, stored_tensors

ROWS, COLUMNS = 24, 96
ARRAYS = random_arrays(0, weight=(ROWS, COLUMNS), bias=(ROWS,), x=(2, 3, COLUMNS))
RULE = QuantizedMatMul(
    {"weight": WeightFormats(ChannelWeights(sums_in_16_bits=True))},
    "float32",
    InputNumbers(),
    {ChannelWeights: dynamic_quantize_matmul.PRODUCT},
)


def rounded(x: np.ndarray) -> np.ndarray:
    """The standard's DynamicQuantizeLinear and back: uint8 over the range of all values, zero among them."""
    low, high = min(0.0, x.min()), max(0.0, x.max())
    scale = (high - low) / 255
    zero = np.clip(np.round(-low / scale), 0, 255)
    return ((np.clip(np.round(x / scale) + zero, 0, 255) - zero) * scale).astype(np.float32)


def test_numbers() -> None:
    text = f"""g (float[B, S, {COLUMNS}] x) => (float[B, S, {ROWS}] y) {{
        product = MatMul (x, weight)
        sum = Add (product, bias)
        y = Neg (sum)
    }}"""
    weight = torch.from_numpy(ARRAYS["weight"])
    before = program(text, {"weight": ARRAYS["weight"].T.copy(), "bias": ARRAYS["bias"]})
    after = rewritten(before, RULE, stored_tensors(ChannelWeights(sums_in_16_bits=True), weight, "weight"))
    assert (after.fired, after.reasons) == (1, [])
    assert after.operators == {"DynamicQuantizeMatMul": 1, "Neg": 1}
    found, kept = -run(after.model, ARRAYS)["y"], decode(ChannelWeights(sums_in_16_bits=True), weight).numpy().T
    np.testing.assert_allclose(found, rounded(ARRAYS["x"]) @ kept + ARRAYS["bias"], atol=1e-4)
    assert np.abs(found - (ARRAYS["x"] @ kept + ARRAYS["bias"])).max() > 0.01  # the control: inputs are rounded
    assert np.abs(found + run(before, ARRAYS)["y"]).max() < 0.5
