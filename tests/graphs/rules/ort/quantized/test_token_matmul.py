"""Products of integers whose inputs have a scale for each row."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch

from glm_export.calibration.formats import decode
from glm_export.graphs.rules.ort.quantized import matmul_nbits, token_matmul
from glm_export.graphs.rules.ort.quantized.quantized_matmul import QuantizedMatMul
from glm_export.graphs.rules.qdq.matmul import InputNumbers
from glm_export.spec.weight_formats import PROMPT, PROMPT_TOKENS, BlockWeights, TokenWeights, WeightFormats
from tests.helpers.small_programs import program, random_arrays, rewritten, run, stored_tensors

ROWS, COLUMNS = 24, 96
ARRAYS = random_arrays(0, weight=(ROWS, COLUMNS), bias=(ROWS,))
WEIGHT = torch.from_numpy(ARRAYS["weight"])
PRODUCTS = {TokenWeights: token_matmul.PRODUCT, BlockWeights: matmul_nbits.PRODUCT}
BLOCKS = BlockWeights(bits=8, block=32)
TEXT = f"""g (int64[B, S] input_ids, float[B, S, {COLUMNS}] x) => (float[B, S, {ROWS}] y) {{
    product = MatMul (x, weight)
    sum = Add (product, bias)
    y = Neg (sum)
}}"""


def rounded(x: np.ndarray) -> np.ndarray:
    """Each row to 127 steps either way, and back."""
    largest = np.maximum(np.abs(x).max(-1, keepdims=True), 2.0**-126)
    return (np.rint(x / largest * np.float32(127)) / 127 * largest).astype(np.float32)


def quantized(formats: WeightFormats, stored: Mapping[str, np.ndarray]) -> object:
    rule = QuantizedMatMul({"weight": formats}, "float32", InputNumbers(), PRODUCTS)
    before = program(TEXT, {"weight": ARRAYS["weight"].T.copy(), "bias": ARRAYS["bias"]})
    after = rewritten(before, rule, stored)
    assert (after.fired, after.reasons) == (1, [])
    return after


def feeds(tokens: int) -> dict[str, np.ndarray]:
    x = random_arrays(1, x=(1, tokens, COLUMNS))["x"]
    x[0, 0] *= 600
    return {"x": x, "input_ids": np.zeros((1, tokens), np.int64)}


def test_numbers() -> None:
    """Every row by its own scale, one of zeros too; and a row is the same whatever stands beside it."""
    after = quantized(WeightFormats(TokenWeights()), stored_tensors(TokenWeights(), WEIGHT, "weight"))
    assert after.operators["MatMulIntegerToFloat"] == 1
    given = feeds(5)
    given["x"][0, 3] = 0
    found, kept = -run(after.model, given)["y"], decode(TokenWeights(), WEIGHT).numpy().T
    np.testing.assert_allclose(found, rounded(given["x"]) @ kept + ARRAYS["bias"], rtol=1e-4, atol=2e-3)
    assert np.abs(found[0, 1:] - (given["x"] @ kept + ARRAYS["bias"])[0, 1:]).max() > 0.003  # the control
    alone = {"x": given["x"][:, 1:2], "input_ids": given["input_ids"][:, 1:2]}
    np.testing.assert_array_equal(-run(after.model, alone)["y"], found[:, 1:2])


@pytest.mark.parametrize("tokens", [1, PROMPT_TOKENS, PROMPT_TOKENS + 1, 20])
def test_as_the_form_for_prompts(tokens: int) -> None:
    """In a branch, with the bias: many tokens by integers, few by blocks."""
    stored = stored_tensors(BLOCKS, WEIGHT, "weight") | stored_tensors(TokenWeights(), WEIGHT, f"weight{PROMPT}")
    after = quantized(WeightFormats(BLOCKS, TokenWeights()), stored)
    assert (after.operators["If"], after.operators["MatMulIntegerToFloat"]) == (1, 1)
    given = feeds(tokens)
    found = -run(after.model, given)["y"]
    by_token = rounded(given["x"]) @ decode(TokenWeights(), WEIGHT).numpy().T + ARRAYS["bias"]
    scale = np.abs(by_token).max(axis=-1, keepdims=True)
    apart = (np.abs(found - by_token) / scale).max()
    assert (apart < 1e-5) == (tokens > PROMPT_TOKENS)
    assert apart < 0.02
