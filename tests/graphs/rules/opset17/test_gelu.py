"""GELU in primitives, exact and by its tanh."""

from __future__ import annotations

import numpy as np
import pytest

from glm_export.graphs.rules.opset17.gelu import GeluToPrimitives
from tests.helpers.small_programs import assert_equal, assert_left_alone, program, rewritten, run

VALUES = np.linspace(-6, 6, 41)


@pytest.mark.parametrize(
    ("attribute", "curve"), [("", "Erf"), ('<approximate="none">', "Erf"), ('<approximate="tanh">', "Tanh")]
)
def test_numbers(attribute: str, curve: str) -> None:
    before = program(f"g (float[41] x) => (float[41] y) {{ y = Gelu {attribute} (x) }}")
    after = rewritten(before, GeluToPrimitives(), opset=17)
    assert (after.fired, after.reasons) == (1, [])
    assert after.operators[curve] == 1
    assert set(after.operators) == {"Mul", "Add", curve}
    feeds = {"x": VALUES.astype(np.float32)}
    assert_equal(run(after.model, feeds), run(before, feeds))


def test_the_two_are_told_apart() -> None:
    """The control: they differ by more than the tolerance above."""
    exact, tanh = (
        run(program(f'g (float[41] x) => (float[41] y) {{ y = Gelu <approximate="{kind}"> (x) }}'), feeds)["y"]
        for kind, feeds in (("none", {"x": VALUES.astype(np.float32)}), ("tanh", {"x": VALUES.astype(np.float32)}))
    )
    assert np.abs(exact - tanh).max() > 1e-4


def test_constants_have_the_dtype_of_the_program() -> None:
    before = program("g (float16[41] x) => (float16[41] y) { y = Gelu (x) }")
    feeds = {"x": VALUES.astype(np.float16)}
    assert_equal(run(rewritten(before, GeluToPrimitives(), opset=17).model, feeds), run(before, feeds), 5e-3)


def test_other_activations_are_left_alone() -> None:
    assert_left_alone(program("g (float[41] x) => (float[41] y) { y = Elu (x) }"), GeluToPrimitives())
