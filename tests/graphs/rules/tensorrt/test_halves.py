"""Two halves of a product's channels become an axis of their own."""

from __future__ import annotations

import pytest

from glm_export.graphs.rules.tensorrt.halves import HalvesOnAnAxisOfTheirOwn
from tests.helpers.small_programs import (
    Arrays,
    assert_equal,
    assert_left_alone,
    program,
    random_arrays,
    rewritten,
    run,
)

WEIGHTS: Arrays = random_arrays(1, weight=(4, 6), stack=(5, 4, 6), bias=(6,), odd=(4, 5))
PRODUCT = "product = MatMul (x, weight)"


def halves(made: str = PRODUCT, split: str = "Split <axis=-1, num_outputs=2>", shape: str = "B, S") -> str:
    return f"""g (float[{shape}, 4] x) => (float[{shape}, F] gate, float[{shape}, F] up) {{
        {made}
        gate, up = {split} (product)
    }}"""


@pytest.mark.parametrize(
    ("made", "shape", "sizes"),
    [
        (PRODUCT, "B, S", (2, 3)),
        (PRODUCT, "X", (3,)),
        ("inner = MatMul (x, weight)\n product = Add (inner, bias)", "B, S", (2, 3)),
        ("product = MatMul (x, stack)", "5, X", (5, 3)),
    ],
    ids=["rows and tokens", "tokens", "with a bias", "a stack of experts"],
)
def test_numbers(made: str, shape: str, sizes: tuple[int, ...]) -> None:
    before = program(halves(made, shape=shape), WEIGHTS)
    after = rewritten(before, HalvesOnAnAxisOfTheirOwn())
    assert (after.fired, after.reasons) == (1, [])
    products = {name: made.count(name) for name in ("MatMul", "Add") if name in made}
    assert after.operators == products | {"Reshape": 1, "Split": 1, "Squeeze": 2}
    feeds = random_arrays(0, x=(*sizes, 4))
    expected = run(before, feeds)
    assert_equal(run(after.model, feeds), expected, 0)
    assert abs(expected["gate"] - expected["up"]).max() > 0.1  # which half is which shows


def test_parts_that_are_no_halves_are_left_alone() -> None:
    text = halves(split="Split <axis=-1, num_outputs=3>").replace("up)", "up, float[B, S, F] third)")
    assert_left_alone(program(text.replace("gate, up =", "gate, up, third ="), WEIGHTS), HalvesOnAnAxisOfTheirOwn())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (halves("product = Relu (x)"), "it is not a product that is split"),
        (halves("product = MatMul (x, odd)"), "the halves are not equal"),
        (halves(split="Split <axis=0, num_outputs=2>"), "not its channels are split"),
    ],
)
def test_another_split_says_why(text: str, reason: str) -> None:
    after = rewritten(program(text, WEIGHTS), HalvesOnAnAxisOfTheirOwn())
    assert after.fired == 0
    assert [told.split(": ", 1)[1] for told in after.reasons] == [reason]
