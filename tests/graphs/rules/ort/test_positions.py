"""Positions counted from lengths, where the fused attention cannot rotate."""

from __future__ import annotations

import numpy as np
import pytest

from glm_export.graphs.rules.ort.positions import PositionsFromLengths
from tests.helpers.small_programs import assert_equal, assert_left_alone, program, random_arrays, rewritten, run


def rotated(half: int = 2, *, table: bool = True) -> str:
    """Two heads of 16 channels."""
    angles = f"float[16, {half}]" if table else f"float[B, S, {half}]"
    return f"""g (int64[B, S] input_ids, int64[B, T] attention_mask, int64[B, S] position_ids, float[B, S, 32] x,
    {angles} cos, {angles} sin) => (float[B, S, 32] y) {{
        y = RotaryEmbedding <num_heads=2, interleaved=1, rotary_embedding_dim={2 * half}>
            (x, cos, sin{", position_ids" if table else ""})
    }}"""


@pytest.mark.parametrize(
    ("real", "columns", "positions"),
    [
        ([3, 2], 3, [[0, 1, 2], [0, 1, 2]]),  # a prefill: what padding gets, nobody reads
        ([7, 5], 7, [[4, 5, 6], [2, 3, 4]]),
    ],
    ids=["prefill", "behind a past"],
)
def test_numbers(real: list[int], columns: int, positions: list[list[int]]) -> None:
    before = program(rotated())
    after = rewritten(before, PositionsFromLengths())
    assert (after.fired, after.reasons) == (1, [])
    assert (after.operators["RotaryEmbedding"], after.operators["CumSum"]) == (1, 1)
    assert "position_ids" not in {name for node in after.model.graph.node for name in node.input}
    angles = random_arrays(1, angles=(16, 2))["angles"]
    feeds = random_arrays(0, x=(2, 3, 32)) | {
        "cos": np.cos(angles), "sin": np.sin(angles), "input_ids": np.zeros((2, 3), np.int64),
        "attention_mask": (np.arange(columns) < np.array(real)[:, None]).astype(np.int64),
        "position_ids": np.array(positions),
    }  # fmt: skip
    expected = run(before, feeds)
    assert_equal(run(after.model, feeds), expected)
    shifted = run(before, feeds | {"position_ids": feeds["position_ids"] + 1})  # the control
    assert np.abs(shifted["y"] - expected["y"]).max() > 0.1


def test_positions_are_counted_once() -> None:
    text = rotated().replace("(float[B, S, 32] y)", "(float[B, S, 32] y, float[B, S, 32] z)")
    second = "z = RotaryEmbedding <num_heads=2, interleaved=1, rotary_embedding_dim=4> (y, cos, sin, position_ids) }"
    after = rewritten(program(text.rstrip().removesuffix("}") + second), PositionsFromLengths())
    assert (after.fired, after.operators["CumSum"]) == (2, 1)


def test_tables_the_fused_operator_takes_are_left_alone() -> None:
    assert_left_alone(program(rotated(half=8)), PositionsFromLengths())


def test_angles_without_positions_are_left_alone() -> None:
    assert_left_alone(program(rotated(table=False)), PositionsFromLengths())
