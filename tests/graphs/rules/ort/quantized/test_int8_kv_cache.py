"""The fused attention over a cache of integers: it rounds what it keeps by the scales it is given."""

from __future__ import annotations

import numpy as np

from glm_export.graphs.rules.ort.quantized.int8_kv_cache import GroupQueryOfIntegers
from tests.helpers.small_programs import assert_left_alone, program, random_arrays, rewritten, run

HEADS, KV_HEADS, HEAD_DIM, PAST, QUERIES = 4, 2, 16, 4, 3
KEY, VALUE = "past_key_values.0.key", "past_key_values.0.value"
SCALES = {KEY: 0.04, VALUE: 0.03}
RULE = GroupQueryOfIntegers(SCALES)


def attention(cache: str = "float", *, rotary: bool = False) -> str:
    """``cache``: dtype of keys and values between calls."""
    past, present = (f"{cache}[B, {KV_HEADS}, {length}, {HEAD_DIM}]" for length in ("P", "T"))
    packed, packed_kv = (f"float[B, S, {count * HEAD_DIM}]" for count in (HEADS, KV_HEADS))
    tables, given = (", float[16, 8] cos, float[16, 8] sin", ", cos, sin") if rotary else ("", "")
    return f"""g ({packed} q, {packed_kv} k, {packed_kv} v, {past} "{KEY}", {past} "{VALUE}", int32[B] lengths,
    int32 total{tables}) => ({packed} out, {present} present_key, {present} present_value) {{
        out, present_key, present_value = com.microsoft.GroupQueryAttention
            <num_heads={HEADS}, kv_num_heads={KV_HEADS}, do_rotary={int(rotary)}>
            (q, k, v, "{KEY}", "{VALUE}", lengths, total{given})
    }}"""


def feeds() -> dict[str, np.ndarray]:
    """A past of integers, and as floats what those stand for."""
    kinds = {"q": HEADS, "k": KV_HEADS, "v": KV_HEADS}
    arrays = random_arrays(0, **{name: (1, QUERIES, count * HEAD_DIM) for name, count in kinds.items()})
    random, angles = np.random.default_rng(1), random_arrays(2, angles=(16, 8))["angles"]
    past = {name: random.integers(-40, 41, (1, KV_HEADS, PAST, HEAD_DIM)).astype(np.int8) for name in SCALES}
    lengths = {"lengths": np.array([PAST + QUERIES - 1], np.int32), "total": np.array(PAST + QUERIES, np.int32)}
    return arrays | past | lengths | {"cos": np.cos(angles), "sin": np.sin(angles)}


def dequantized(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return given | {name: given[name].astype(np.float32) * np.float32(scale) for name, scale in SCALES.items()}


def check(*, rotary: bool) -> None:
    given = feeds()
    after = rewritten(program(attention("int8", rotary=rotary)), RULE)
    assert (after.fired, after.reasons) == (1, [])
    found, expected = run(after.model, given), run(program(attention(rotary=rotary)), dequantized(given))
    for name, scale in zip(("present_key", "present_value"), SCALES.values(), strict=True):
        assert found[name].dtype == np.int8
        np.testing.assert_allclose(found[name], expected[name] / scale, atol=0.501)  # half a step
    assert np.abs(found["out"] - expected["out"]).max() < 0.05
    swapped = given | {KEY: given[VALUE], VALUE: given[KEY]}  # the control
    assert np.abs(run(after.model, swapped)["out"] - expected["out"]).max() > 0.5


def test_numbers() -> None:
    check(rotary=False)


def test_the_rotation_stays_within() -> None:
    check(rotary=True)


def test_other_operators_are_left_alone() -> None:
    assert_left_alone(program("g (float[2] x) => (float[2] y) { y = Softmax (x) }"), RULE)
