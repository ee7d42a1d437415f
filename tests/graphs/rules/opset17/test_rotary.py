"""Rotary embedding in primitives: whole and partial heads, both pairings, with and without a table of positions."""

from __future__ import annotations

import numpy as np
import pytest

from glm_export.graphs.rules.opset17.rotary import RotaryToPrimitives
from tests.helpers.small_programs import Arrays, assert_equal, assert_left_alone, program, random_arrays, rewritten, run

HEADS, POSITIONS = 3, 16


def rotary(half: int, *, interleaved: int = 1, table: bool = True) -> str:
    """Heads of 8 channels, of which ``2 * half`` are rotated."""
    attributes = f"num_heads={HEADS}, interleaved={interleaved}, rotary_embedding_dim={2 * half}"
    angles = f"float[{POSITIONS}, {half}]" if table else f"float[2, 4, {half}]"
    positions = ", int64[2, 4] positions" if table else ""
    return f"""g (float[2, 4, 24] x, {angles} cos, {angles} sin{positions}) => (float[2, 4, 24] y)
    {{ y = RotaryEmbedding <{attributes}> (x, cos, sin{", positions" if table else ""}) }}"""


def feeds(half: int, *, table: bool = True) -> Arrays:
    shape = (POSITIONS, half) if table else (2, 4, half)
    angles = random_arrays(1, angles=shape)["angles"]
    positions = np.random.default_rng(2).integers(0, POSITIONS, (2, 4))
    return random_arrays(0, x=(2, 4, 24)) | {"cos": np.cos(angles), "sin": np.sin(angles), "positions": positions}


@pytest.mark.parametrize("table", [True, False], ids=["table", "angles"])
@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("half", [4, 2, 1])
def test_numbers(half: int, interleaved: int, table: bool) -> None:
    before = program(rotary(half, interleaved=interleaved, table=table))
    after = rewritten(before, RotaryToPrimitives(), opset=17)
    assert (after.fired, after.reasons) == (1, [])
    assert after.operators["Gather"] == (2 if table else 0)
    assert "RotaryEmbedding" not in after.operators
    given = feeds(half, table=table)
    expected = run(before, given)
    assert_equal(run(after.model, given), expected)
    if half > 1:  # the control: the other pairing is something else
        other = run(program(rotary(half, interleaved=1 - interleaved, table=table)), given)
        assert np.abs(other["y"] - expected["y"]).max() > 0.1


def test_angles_are_looked_up_once_for_all_layers() -> None:
    kind, attributes = "float[2, 4, 24]", "num_heads=3, interleaved=1"
    before = program(f"""g ({kind} q, {kind} k, float[16, 4] cos, float[16, 4] sin, int64[2, 4] positions) =>
    ({kind} a, {kind} b) {{
        a = RotaryEmbedding <{attributes}> (q, cos, sin, positions)
        b = RotaryEmbedding <{attributes}> (k, cos, sin, positions)
    }}""")
    after = rewritten(before, RotaryToPrimitives(), opset=17)
    assert after.fired == 2
    assert after.operators["Gather"] == 2
    given = feeds(4) | random_arrays(3, q=(2, 4, 24), k=(2, 4, 24))
    assert_equal(run(after.model, given), run(before, given))


def test_heads_already_apart_are_left_alone() -> None:
    text = rotary(4).replace("[2, 4, 24]", "[2, 3, 4, 8]").replace("num_heads=3, ", "")
    assert_left_alone(program(text), RotaryToPrimitives(), "num_heads is not given")


def test_other_operators_are_left_alone() -> None:
    assert_left_alone(program("g (float[2] x) => (float[2] y) { y = Cos (x) }"), RotaryToPrimitives())
