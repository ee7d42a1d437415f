"""RMS norm in primitives, in float32 whatever the program's dtype."""

from __future__ import annotations

import numpy as np
import pytest

from glm_export.graphs.rules.opset17.rms_norm import RmsNormToPrimitives
from tests.helpers.small_programs import assert_equal, assert_left_alone, program, random_arrays, rewritten, run

SHAPE = (2, 3, 8)


def norm(dtype: str = "float", attributes: str = "axis=-1, epsilon=0.01") -> str:
    kind = f"{dtype}[2, 3, 8]"
    return f"g ({kind} x, {dtype}[8] weight) => ({kind} y) {{ y = RMSNormalization <{attributes}> (x, weight) }}"


@pytest.mark.parametrize("attributes", ["axis=-1, epsilon=0.01", "epsilon=0.01"])
def test_numbers(attributes: str) -> None:
    before = program(norm(attributes=attributes))
    after = rewritten(before, RmsNormToPrimitives(), opset=17)
    assert (after.fired, after.reasons) == (1, [])
    assert after.operators == {"Mul": 2, "ReduceMean": 1, "Add": 1, "Sqrt": 1, "Div": 1}
    feeds = random_arrays(0, x=SHAPE, weight=(8,))
    # An epsilon of this size shows in rows as small.
    feeds["x"] *= 0.1
    assert_equal(run(after.model, feeds), run(before, feeds))


def test_squares_beyond_float16() -> None:
    """300 squared is no float16; its norm is."""
    feeds = {"x": np.full(SHAPE, 300, np.float16), "weight": np.full(8, 0.5, np.float16)}
    after = rewritten(program(norm("float16")), RmsNormToPrimitives(), opset=17)
    assert after.operators["Cast"] == 2
    np.testing.assert_array_equal(run(after.model, feeds)["y"], np.full(SHAPE, 0.5, np.float16))


def test_a_norm_over_more_axes_is_left_alone() -> None:
    text = norm(attributes="axis=-2, epsilon=0.01").replace("float[8] weight", "float[3, 8] weight")
    assert_left_alone(program(text), RmsNormToPrimitives(), "it normalizes over more than the last axis")


def test_another_norm_is_left_alone() -> None:
    assert_left_alone(program(norm().replace("RMSNormalization", "LayerNormalization")), RmsNormToPrimitives())
