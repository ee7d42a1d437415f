"""A cache of integers: new values are rounded once, put behind the past ones, and read as floats."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from glm_export.graphs.rules.qdq.kv_cache import AttentionOfIntegers, ConcatOfIntegers
from tests.helpers.small_programs import Arrays, assert_equal, assert_left_alone, program, random_arrays, rewritten, run

HEADS, KV_HEADS, HEAD_DIM, BATCH, PAST, QUERIES = 4, 2, 8, 2, 4, 3
KEY, VALUE = "past_key_values.0.key", "past_key_values.0.value"
SCALES = {KEY: 0.03, VALUE: 0.02}
GIVEN = f'q, k, v, mask, "{KEY}", "{VALUE}"'


def attention(cache: str = "float", given: str = GIVEN) -> str:
    past, present = (f"{cache}[B, {KV_HEADS}, {length}, {HEAD_DIM}]" for length in ("P", "T"))
    packed, packed_kv = (f"float[B, S, {count * HEAD_DIM}]" for count in (HEADS, KV_HEADS))
    return f"""g ({packed} q, {packed_kv} k, {packed_kv} v, bool[B, 1, S, T] mask, {past} "{KEY}", {past} "{VALUE}") =>
    ({packed} out, {present} present_key, {present} present_value) {{
        out, present_key, present_value = Attention <q_num_heads={HEADS}, kv_num_heads={KV_HEADS}> ({given})
    }}"""


def feeds() -> dict[str, np.ndarray]:
    """New keys and values that lie on their scales' steps, so that the float program sees what the integers say."""
    random = np.random.default_rng(0)
    arrays = random_arrays(1, q=(BATCH, QUERIES, HEADS * HEAD_DIM))
    for name, scale in zip("kv", SCALES.values(), strict=True):
        steps = random.integers(-128, 128, (BATCH, QUERIES, KV_HEADS * HEAD_DIM))
        arrays[name] = steps.astype(np.float32) * np.float32(scale)
    mask = np.tile(np.tril(np.ones((QUERIES, PAST + QUERIES), bool), PAST), (BATCH, 1, 1, 1))
    past = {name: random.integers(-128, 128, (BATCH, KV_HEADS, PAST, HEAD_DIM)).astype(np.int8) for name in SCALES}
    return arrays | past | {"mask": mask}


def as_floats(given: Arrays) -> dict[str, np.ndarray]:
    return dict(given) | {name: given[name].astype(np.float32) * np.float32(scale) for name, scale in SCALES.items()}


def dequantized(found: Arrays) -> dict[str, np.ndarray]:
    presents = dict(zip(("present_key", "present_value"), SCALES.values(), strict=True))
    assert all(found[name].dtype == np.int8 for name in presents)
    return dict(found) | {name: found[name].astype(np.float32) * np.float32(scale) for name, scale in presents.items()}


def test_attention() -> None:
    after = rewritten(program(attention("int8")), AttentionOfIntegers(SCALES, "float32"))
    assert (after.fired, after.reasons) == (1, [])
    assert after.operators == {
        "Attention": 1, "Concat": 2, "QuantizeLinear": 2, "DequantizeLinear": 2, "Reshape": 4, "Transpose": 4,
    }  # fmt: skip
    given = feeds()
    expected = run(program(attention()), as_floats(given))
    assert_equal(dequantized(run(after.model, given)), expected, 1e-5)
    swapped = given | {KEY: given[VALUE], VALUE: given[KEY]}  # the control
    assert np.abs(run(after.model, swapped)["out"] - expected["out"]).max() > 0.1


GROWTH = f'''g (float[1, 1, S, 2] new, float[1, 1, P, 2] "{KEY}") =>
(float[1, 1, T, 2] present, float[1, 1, T, 2] doubled) {{
    present = Concat <axis=2> ("{KEY}", new)
    doubled = Add (present, present)
}}'''


def test_growth() -> None:
    """New values between two steps are rounded, those beyond the range saturate, and past ones stay."""
    model = program(GROWTH)
    for value in (model.graph.input[1], model.graph.output[0]):  # as lowering declares them
        value.type.tensor_type.elem_type = onnx.TensorProto.INT8
    after = rewritten(model, ConcatOfIntegers(SCALES, "float32"))
    assert (after.fired, after.reasons) == (1, [])
    assert after.operators == {"QuantizeLinear": 1, "Concat": 1, "DequantizeLinear": 1, "Add": 1}
    new = np.array([0.044, -9, 9, 0.046], np.float32).reshape(1, 1, 2, 2)
    past = np.array([7, -128], np.int8).reshape(1, 1, 1, 2)
    found = run(after.model, {"new": new, KEY: past})
    steps = [7, -128, 1, -128, 127, 2]
    assert found["present"].dtype == np.int8
    assert found["present"].ravel().tolist() == steps
    kept = np.array(steps, np.float32).reshape(1, 1, 3, 2) * np.float32(SCALES[KEY])
    before = run(program(GROWTH), {"new": kept[:, :, 1:], KEY: kept[:, :, :1]})
    np.testing.assert_allclose(found["doubled"], before["doubled"], atol=1e-6)


@pytest.mark.parametrize(
    "text",
    ["g (float[2] x, float[2] new) => (float[4] y) { y = Concat <axis=0> (x, new) }",
     f'g (float[2] "{KEY}") => (float[2] y) {{ y = Neg ("{KEY}") }}'],
    ids=["another Concat", "another reader"],
)  # fmt: skip
def test_what_is_no_growth_of_a_cache_is_left_alone(text: str) -> None:
    assert_left_alone(program(text), ConcatOfIntegers(SCALES, "float32"))


def test_attention_without_a_cache_is_left_alone() -> None:
    text = attention().split("=>")[0] + f"=> (float[B, S, {HEADS * HEAD_DIM}] out) {{ out = Attention"
    text += f" <q_num_heads={HEADS}, kv_num_heads={KV_HEADS}> (q, k, v, mask) }}"
    rule = AttentionOfIntegers(SCALES, "float32")
    assert_left_alone(program(text), rule, "expected q, k, v, mask and the two pasts")
    masked = program(attention(given=GIVEN.replace("mask", "")))
    assert_left_alone(masked, rule, "expected q, k, v, mask and the two pasts")


def test_other_operators_are_left_alone() -> None:
    softmax = program("g (float[2] x) => (float[2] y) { y = Softmax (x) }")
    assert_left_alone(softmax, AttentionOfIntegers(SCALES, "float32"))
