"""Rotation, attention and cache in one operator: packed, apart, and with the rotation kept before it."""

from __future__ import annotations

import numpy as np
import pytest

from glm_export.graphs.rules.ort.group_query_attention import AttentionToGroupQuery
from tests.helpers.small_programs import assert_equal, assert_left_alone, program, random_arrays, rewritten, run

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 16
CHANNELS, KV_CHANNELS = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
PAST = f"float[B, {KV_HEADS}, P, {HEAD_DIM}]"
PRESENT = PAST.replace("P", "T")
SPLIT = "q, k, v = Split <axis=-1> (qkv, sizes)"


def attention(half: int = 8, *, between: str = "", key_table: str = "cos", interleaved: int = 1) -> str:
    """``half``: columns of the rotation's tables. ``between``: what stands between the split and the key's rotation."""
    key = "k_normed" if between else "k"
    kind = f"interleaved={interleaved}, rotary_embedding_dim={2 * half}"
    return f"""g (float[B, S, {CHANNELS + 2 * KV_CHANNELS}] qkv, int64[B, T] attention_mask, bool[B, 1, S, T] mask,
    int64[B, S] position_ids, float[16, {half}] cos, float[16, {half}] sin, {PAST} past_key, {PAST} past_value) =>
    (float[B, S, {CHANNELS}] out, {PRESENT} present_key, {PRESENT} present_value) {{
        {SPLIT}
        {between}
        q_rotated = RotaryEmbedding <num_heads={HEADS}, {kind}> (q, cos, sin, position_ids)
        k_rotated = RotaryEmbedding <num_heads={KV_HEADS}, {kind}> ({key}, {key_table}, sin, position_ids)
        out, present_key, present_value = Attention <q_num_heads={HEADS}, kv_num_heads={KV_HEADS}>
            (q_rotated, k_rotated, v, mask, past_key, past_value)
    }}"""


WEIGHTS = {"sizes": np.array([CHANNELS, KV_CHANNELS, KV_CHANNELS])}


def feeds(past: int, half: int, queries: int = 3) -> dict[str, np.ndarray]:
    """Behind a past the operator takes several queries of one row alone."""
    batch = 1 if past else 2
    angles = random_arrays(1, angles=(16, half))["angles"]
    cache = (batch, KV_HEADS, past, HEAD_DIM)
    arrays = random_arrays(0, qkv=(batch, queries, CHANNELS + 2 * KV_CHANNELS), past_key=cache, past_value=cache)
    return arrays | {
        "cos": np.cos(angles), "sin": np.sin(angles),
        "attention_mask": np.ones((batch, past + queries), np.int64),
        "mask": np.tile(np.tril(np.ones((queries, past + queries), bool), past), (batch, 1, 1, 1)),
        "position_ids": np.tile(np.arange(past, past + queries), (batch, 1)),
    }  # fmt: skip


@pytest.mark.parametrize("past", [0, 4])
@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize(
    ("half", "between", "inputs", "rotations"),
    [(8, "", 1, 0), (8, "k_normed = Neg (k)", 3, 0), (2, "", 3, 2)],
    ids=["packed", "apart", "rotated before"],
)
def test_numbers(half: int, between: str, inputs: int, rotations: int, interleaved: int, past: int) -> None:
    before = program(attention(half, between=between, interleaved=interleaved), WEIGHTS)
    after = rewritten(before, AttentionToGroupQuery())
    assert (after.fired, after.reasons) == (1, [])
    (fused,) = (node for node in after.model.graph.node if node.op_type == "GroupQueryAttention")
    assert sum(bool(name) for name in fused.input[:3]) == inputs
    assert (after.operators["Attention"], after.operators["RotaryEmbedding"]) == (0, rotations)
    given = feeds(past, half)
    expected = run(before, given)
    assert_equal(run(after.model, given), expected, 5e-6)
    unmasked = run(before, given | {"mask": np.ones_like(given["mask"])})  # the control
    assert np.abs(unmasked["out"] - expected["out"]).max() > 0.05


def test_rows_padded_on_the_right() -> None:
    """The second row has two tokens of three; its own positions are counted from its mask."""
    before, given = program(attention(), WEIGHTS), feeds(0, 8)
    given["attention_mask"][1, 2] = 0
    found, expected = run(rewritten(before, AttentionToGroupQuery()).model, given), run(before, given)
    np.testing.assert_allclose(found["out"][0], expected["out"][0], atol=5e-6)
    np.testing.assert_allclose(found["out"][1, :2], expected["out"][1, :2], atol=5e-6)


def test_lengths_are_counted_once_for_all_layers() -> None:
    text = attention().replace("present_value) {", f"present_value, float[B, S, {CHANNELS}] again) {{")
    layer = f"""again, more_key, more_value = Attention <q_num_heads={HEADS}, kv_num_heads={KV_HEADS}>
        (q_rotated, k_rotated, v, mask, past_key, past_value) }}"""
    after = rewritten(program(text.rstrip().removesuffix("}") + layer, WEIGHTS), AttentionToGroupQuery())
    assert (after.fired, after.operators["ReduceSum"]) == (2, 1)


def test_unrotated_keys_are_left_alone() -> None:
    text = attention().replace("(q_rotated, k_rotated,", "(q_rotated, k,")
    assert_left_alone(program(text, WEIGHTS), AttentionToGroupQuery(), "queries or keys are not rotated right before")


def test_keys_that_turn_by_another_table_are_left_alone() -> None:
    reason = "queries and keys turn by different tables or positions"
    assert_left_alone(program(attention(key_table="sin"), WEIGHTS), AttentionToGroupQuery(), reason)


def test_angles_without_positions_are_left_alone() -> None:
    text = attention().replace("sin, position_ids)", "sin)").replace("float[16, 8]", "float[B, S, 8]")
    reason = "the rotation has angles of its own instead of positions in a table"
    assert_left_alone(program(text, WEIGHTS), AttentionToGroupQuery(), reason)


def test_other_operators_are_left_alone() -> None:
    assert_left_alone(program("g (float[2] x) => (float[2] y) { y = Softmax (x) }"), AttentionToGroupQuery())
