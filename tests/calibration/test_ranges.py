"""Scales as a program holds them: rounded to its dtype as PyTorch rounds, never truncated."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies as st

from glm_export.calibration.ranges import _rounded

SCALES = st.floats(1e-30, 1e30, allow_nan=False)


@given(scale=SCALES)
def test_bfloat16_scales_are_rounded_to_nearest(scale: float) -> None:
    assert _rounded(scale, "bfloat16") == float(torch.tensor(scale, dtype=torch.float32).bfloat16())


@pytest.mark.parametrize("step", [1, 2, 3])
def test_ties_go_to_the_even_one(step: int) -> None:
    """Halfway between two neighbours of bfloat16, which has 8 bits."""
    halfway = 1 + (2 * step - 1) / 256
    assert _rounded(halfway, "bfloat16") == float(torch.tensor(halfway).bfloat16())


@given(scale=st.floats(1e-7, 6e4))
def test_float16_scales_are_rounded_and_never_zero(scale: float) -> None:
    expected = float(torch.tensor(scale, dtype=torch.float32).half())
    assert _rounded(scale, "float16") == max(expected, 2.0**-24)


@given(scale=SCALES)
def test_float32_scales_are_float32(scale: float) -> None:
    assert _rounded(scale, "float32") == float(torch.tensor(scale, dtype=torch.float32))
