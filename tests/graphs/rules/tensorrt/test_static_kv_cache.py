"""Attention over a cache of fixed size: rows of their own lengths, packed and apart, causal and told who sees whom."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from glm_export.graphs.rules.tensorrt.static_kv_cache import AttentionOnStaticCache
from tests.helpers.small_programs import Arrays, assert_left_alone, program, random_arrays, rewritten, run

HEADS, KV_HEADS, HEAD_DIM, COLUMNS, QUERIES = 4, 2, 16, 12, 3
CHANNELS, KV_CHANNELS = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
WEIGHTS = {"sizes": np.array([CHANNELS, KV_CHANNELS, KV_CHANNELS])}
SPLIT = "q, k, v = Split <axis=-1> (qkv, sizes)"
PASTS = "mask, past_key, past_value"


def attention(
    columns: int | str = COLUMNS, *, rotate: bool = True, between: str = "", more: str = "", prefix: bool = False,
    given: str = PASTS, half: int = 4,
) -> str:  # fmt: skip
    """``columns``: of the cache, ``"P"`` for one that grows. Queries are rotated; keys are, with ``rotate``."""
    present = columns if isinstance(columns, int) else "T"
    kind = f"interleaved=1, rotary_embedding_dim={2 * half}"
    past, kept = (f"float[B, {KV_HEADS}, {length}, {HEAD_DIM}]" for length in (columns, present))
    told = f", int64[B] write_indices, bool[B, 1, S, {columns}] attention_mask" if prefix else ""
    key = "k_between" if between else "k"
    keys = f"RotaryEmbedding <num_heads={KV_HEADS}, {kind}> ({key}, cos, sin, position_ids)"
    return f"""g (float[B, S, {CHANNELS + 2 * KV_CHANNELS}] qkv, int64[B, S] input_ids, int64[B, S] position_ids,
    float[16, {half}] cos, float[16, {half}] sin{told}, bool[B, 1, S, T] mask, {past} past_key, {past} past_value) =>
    (float[B, S, {CHANNELS}] out, {kept} present_key, {kept} present_value) {{
        {SPLIT}
        {between}
        q_rotated = RotaryEmbedding <num_heads={HEADS}, {kind}> (q, cos, sin, position_ids)
        k_rotated = {keys if rotate else f"Identity ({key})"}
        out, present_key, present_value = Attention <q_num_heads={HEADS}, kv_num_heads={KV_HEADS}{more}>
            (q_rotated, k_rotated, v, {given})
    }}"""


def model(**changes: Any) -> onnx.ModelProto:
    return program(attention(**changes), WEIGHTS)


def feeds(lengths: tuple[int, ...], half: int = 4) -> dict[str, np.ndarray]:
    """Rows with that many tokens each in a cache full of what other batches left; positions are columns."""
    rows = len(lengths)
    cache = (rows, KV_HEADS, COLUMNS, HEAD_DIM)
    angles = random_arrays(1, angles=(16, half))["angles"]
    arrays = random_arrays(
        0, qkv=(rows, QUERIES, CHANNELS + 2 * KV_CHANNELS), past_key=cache, past_value=cache
    )  # fmt: skip
    positions = np.array(lengths)[:, None] + np.arange(QUERIES)
    return arrays | {
        "cos": np.cos(angles), "sin": np.sin(angles), "position_ids": positions,
        "input_ids": np.zeros((rows, QUERIES), np.int64),
    }  # fmt: skip


def grown(given: Arrays, row: int, length: int, mask: np.ndarray | None = None, **changes: Any) -> Arrays:
    """The canonical program on one row alone, with the past it really has."""
    total = length + QUERIES
    alone = {name: values if name in ("cos", "sin") else values[row : row + 1] for name, values in given.items()}
    alone |= {name: alone[name][:, :, :length] for name in ("past_key", "past_value")}
    causal = np.tril(np.ones((QUERIES, total), bool), length)
    return run(model(columns="P", **changes), alone | {"mask": (causal if mask is None else mask)[None, None]})


def check_row(found: Arrays, row: int, length: int, expected: Arrays) -> None:
    np.testing.assert_allclose(found["out"][row], expected["out"][0], atol=5e-6)
    for name in ("present_key", "present_value"):
        np.testing.assert_allclose(found[name][row, :, : length + QUERIES], expected[name][0], atol=1e-6)


@pytest.mark.parametrize("lengths", [(0, 0), (5, 2), (COLUMNS - QUERIES, 0)])
@pytest.mark.parametrize(
    ("changes", "rotations", "transposes"),
    [({}, 2, 2), ({"between": "k_between = Neg (k)"}, 2, 4), ({"rotate": False}, 1, 4)],
    ids=["packed", "apart", "keys not rotated"],
)
def test_numbers(changes: dict[str, Any], rotations: int, transposes: int, lengths: tuple[int, ...]) -> None:
    after = rewritten(model(**changes), AttentionOnStaticCache(), opset=24)
    assert (after.fired, after.reasons) == (1, [])
    assert (after.operators["TensorScatter"], after.operators["RotaryEmbedding"]) == (2, rotations)
    assert after.operators["Transpose"] == transposes
    given = feeds(lengths)
    found = run(after.model, given)
    for row, length in enumerate(lengths):
        check_row(found, row, length, grown(given, row, length, **changes))
    moved = run(
        after.model, given | {"position_ids": given["position_ids"][::-1] + np.array([[1], [0]])}
    )  # the control
    assert np.abs(moved["out"] - found["out"]).max() > 0.05


def test_what_others_left_in_the_cache_is_hidden() -> None:
    after = rewritten(model(), AttentionOnStaticCache(), opset=24)
    given = feeds((5, 2))
    clean = given | {name: given[name].copy() for name in ("past_key", "past_value")}
    for name in ("past_key", "past_value"):
        clean[name][0, :, 5:] = clean[name][1, :, 2:] = 0
    np.testing.assert_array_equal(run(after.model, given)["out"], run(after.model, clean)["out"])


def test_a_program_that_is_told_who_sees_whom() -> None:
    """Where to write comes from outside, and each query sees the column it is written to, whatever the mask says."""
    after = rewritten(model(prefix=True), AttentionOnStaticCache(), opset=24)
    assert after.fired == 1
    length = 4
    given = feeds((length,))
    mask = np.random.default_rng(3).random((QUERIES, length + QUERIES)) < 0.5
    mask[0, length] = False
    told = np.zeros((1, 1, QUERIES, COLUMNS), bool)
    told[0, 0, :, : length + QUERIES] = mask
    # Positions that say nothing about columns.
    given["position_ids"] = np.array([[9, 2, 2]])
    found = run(after.model, given | {"attention_mask": told, "write_indices": np.array([length])})
    itself = mask | np.eye(QUERIES, length + QUERIES, length, dtype=bool)
    check_row(found, 0, length, grown(given, 0, length, itself))


def test_where_to_write_is_found_once_for_all_layers() -> None:
    text = attention().replace("present_value) {", f"present_value, float[B, S, {CHANNELS}] again) {{")
    layer = f"""again, more_key, more_value = Attention <q_num_heads={HEADS}, kv_num_heads={KV_HEADS}>
        (q_rotated, k_rotated, v, {PASTS}) }}"""
    after = rewritten(program(text.rstrip().removesuffix("}") + layer, WEIGHTS), AttentionOnStaticCache(), opset=24)
    assert (after.fired, after.operators["LessOrEqual"]) == (2, 1)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"more": ", is_causal=1"}, "it is causal by itself; the mask must say it"),
        ({"columns": "P"}, "the cache has no fixed size"),
        ({"given": ", past_key, past_value"}, "expected q, k, v, mask and the two pasts, found 6 inputs"),
    ],
    ids=["causal", "growing", "no mask"],
)
def test_near_misses_are_left_alone(changes: dict[str, Any], reason: str) -> None:
    assert_left_alone(model(**changes), AttentionOnStaticCache(), reason)


def test_attention_without_a_cache_is_left_alone() -> None:
    text = attention(given="mask").replace("out, present_key, present_value = A", "out = A").split("=>")
    text = [text[0], text[1][text[1].index("{") :]]
    made = program(f"{text[0]} => (float[B, S, {CHANNELS}] out) {text[1]}", WEIGHTS)
    assert_left_alone(made, AttentionOnStaticCache(), "expected q, k, v, mask and the two pasts, found 4 inputs")


def test_queries_of_unknown_width_are_left_alone() -> None:
    made = model()
    for value in [*made.graph.value_info]:
        if value.name == "q_rotated":
            made.graph.value_info.remove(value)
    assert_left_alone(made, AttentionOnStaticCache(), "the width of the queries is unknown")


def test_other_operators_are_left_alone() -> None:
    assert_left_alone(program("g (float[2] x) => (float[2] y) { y = Softmax (x) }"), AttentionOnStaticCache())
