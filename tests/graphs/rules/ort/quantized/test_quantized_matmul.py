"""Products whose weight has an operator of its own: biases taken in, two formats, smoothing; what is left alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from glm_export.calibration.formats import decode
from glm_export.graphs.quantized import PRODUCTS
from glm_export.graphs.rules.ort.quantized.quantized_matmul import QuantizedMatMul
from glm_export.graphs.rules.qdq.matmul import InputNumbers
from glm_export.spec.weight_formats import PROMPT, PROMPT_TOKENS, BlockWeights, QdqWeights, WeightFormats
from tests.helpers.small_programs import assert_left_alone, program, random_arrays, rewritten, run, stored_tensors

ROWS, COLUMNS = 16, 64
ARRAYS = random_arrays(0, weight=(ROWS, COLUMNS), bias=(ROWS,), bias_of_tokens=(3, ROWS))
WEIGHT = torch.from_numpy(ARRAYS["weight"])
WEIGHTS = {"weight": ARRAYS["weight"].T.copy(), "bias": ARRAYS["bias"], "bias_of_tokens": ARRAYS["bias_of_tokens"]}
STEP = BlockWeights(bits=4, block=32, accuracy_level=0)
PREFILL = BlockWeights(bits=8, block=32, accuracy_level=0)


def rule(formats: WeightFormats, name: str = "weight", numbers: InputNumbers | None = None) -> QuantizedMatMul:
    return QuantizedMatMul({name: formats}, "float32", numbers or InputNumbers(), PRODUCTS)


def product(after: str = "sum = Add (product, bias)\n y = Neg (sum)") -> str:
    return f"""g (int64[B, S] input_ids, float[B, S, {COLUMNS}] x) => (float[B, S, {ROWS}] y) {{
        product = MatMul (x, weight)
        {after}
    }}"""


def feeds(tokens: int, batch: int = 1) -> dict[str, np.ndarray]:
    return random_arrays(1, x=(batch, tokens, COLUMNS)) | {"input_ids": np.zeros((batch, tokens), np.int64)}


@pytest.mark.parametrize(
    ("after", "operators"),
    [
        ("sum = Add (product, bias)\n y = Neg (sum)", {"MatMulNBits": 1, "Neg": 1}),
        ("sum = Add (bias, product)\n y = Neg (sum)", {"MatMulNBits": 1, "Neg": 1}),
        ("y = Neg (product)", {"MatMulNBits": 1, "Neg": 1}),
        ("y = Add (product, bias_of_tokens)", {"MatMulNBits": 1, "Add": 1}),
        ("y = Add (product, product)", {"MatMulNBits": 1, "Add": 1}),
        ("sum = Add (product, bias)\n y = Mul (sum, product)", {"MatMulNBits": 1, "Add": 1, "Mul": 1}),
    ],
    ids=["a bias", "a bias first", "none", "one for each token", "itself", "read twice"],
)
def test_a_bias_is_taken_in_where_it_is_one(after: str, operators: dict[str, int]) -> None:
    model = program(product(after), WEIGHTS)
    made = rewritten(model, rule(WeightFormats(STEP)), stored_tensors(STEP, WEIGHT, "weight"))
    assert (made.fired, made.reasons, made.operators) == (1, [], operators)
    kept = program(product(after), WEIGHTS | {"weight": decode(STEP, WEIGHT).numpy().T.copy()})
    np.testing.assert_allclose(run(made.model, feeds(3))["y"], run(kept, feeds(3))["y"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (1, PROMPT_TOKENS), (1, PROMPT_TOKENS + 1), (3, 3)])
def test_two_formats_by_the_number_of_tokens(batch: int, tokens: int) -> None:
    """Over all rows; a call computes with one of them."""
    stored = stored_tensors(STEP, WEIGHT, "weight") | stored_tensors(PREFILL, WEIGHT, f"weight{PROMPT}")
    made = rewritten(program(product(), WEIGHTS), rule(WeightFormats(STEP, PREFILL)), stored)
    assert made.operators == {"Size": 1, "Greater": 1, "If": 1, "MatMulNBits": 2, "Neg": 1}
    given = feeds(tokens, batch)
    results = [given["x"] @ decode(form, WEIGHT).numpy().T + ARRAYS["bias"] for form in (STEP, PREFILL)]
    many = batch * tokens > PROMPT_TOKENS
    assert WeightFormats(STEP, PREFILL).of(batch * tokens) is (PREFILL if many else STEP)
    found = -run(made.model, given)["y"]
    np.testing.assert_allclose(found, results[many], atol=1e-4)
    assert np.abs(found - results[not many]).max() > 0.1


def test_two_products_ask_once_how_many_tokens_there_are() -> None:
    text = product("more = MatMul (x, other)\n y = Add (product, more)")
    forms = WeightFormats(STEP, PREFILL)
    both = QuantizedMatMul({"weight": forms, "other": forms}, "float32", InputNumbers(), PRODUCTS)
    stored = {
        name: tensor
        for weight in ("weight", "other")
        for form, end in ((STEP, ""), (PREFILL, PROMPT))
        for name, tensor in stored_tensors(form, WEIGHT, weight + end).items()
    }
    made = rewritten(program(text, WEIGHTS | {"other": WEIGHTS["weight"]}), both, stored)
    assert (made.fired, made.operators["Size"], made.operators["If"]) == (2, 1, 2)


def test_smoothing_divides_the_input() -> None:
    divisors = np.linspace(0.5, 2, COLUMNS).astype(np.float32)
    numbers = InputNumbers(divisors={"weight": divisors})
    made = rewritten(
        program(product(), WEIGHTS), rule(WeightFormats(STEP), numbers=numbers), stored_tensors(STEP, WEIGHT, "weight")
    )
    assert made.operators == {"Mul": 1, "MatMulNBits": 1, "Neg": 1}
    given = feeds(3)
    expected = given["x"] / divisors @ decode(STEP, WEIGHT).numpy().T + ARRAYS["bias"]
    np.testing.assert_allclose(-run(made.model, given)["y"], expected, atol=1e-4)


def test_other_weights_and_explicit_ones_are_left_alone() -> None:
    assert_left_alone(program(product(), WEIGHTS), rule(WeightFormats(STEP), name="another"))
    assert_left_alone(program(product(), WEIGHTS), rule(WeightFormats(QdqWeights())))


def test_products_of_two_activations_are_left_alone() -> None:
    text = "g (float[2, 3] x, float[3, 2] other) => (float[2, 2] y) { y = MatMul (x, other) }"
    assert_left_alone(program(text), rule(WeightFormats(STEP)))


def test_another_operator_on_the_weight_is_left_alone() -> None:
    text = f"g (float[3, {ROWS}] x) => (float[3, {COLUMNS}] y) {{ y = Gemm <transB=1> (x, weight) }}"
    assert_left_alone(program(text, WEIGHTS), rule(WeightFormats(STEP)))
