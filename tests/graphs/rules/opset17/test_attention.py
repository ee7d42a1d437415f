"""Attention as two products and a softmax: grouped heads, a cache, masks; scores that float16 cannot hold unscaled."""

from __future__ import annotations

import numpy as np
import pytest

from glm_export.graphs.rules.opset17.attention import AttentionToPrimitives
from tests.helpers.small_programs import Arrays, assert_equal, assert_left_alone, program, random_arrays, rewritten, run

HEAD_DIM, BATCH, QUERIES, PAST = 8, 2, 3, 4
INPUTS = "q, k, v, mask, past_key, past_value"


def attention(heads: int, kv_heads: int, *, dtype: str = "float", given: str = INPUTS, more: str = "") -> str:
    past, present = (f"{dtype}[B, {kv_heads}, {length}, {HEAD_DIM}]" for length in ("P", "T"))
    packed, packed_kv = (f"{dtype}[B, S, {count * HEAD_DIM}]" for count in (heads, kv_heads))
    return f"""g ({packed} q, {packed_kv} k, {packed_kv} v, bool[B, 1, S, T] mask,
    {past} past_key, {past} past_value) => ({packed} out, {present} present_key, {present} present_value) {{
        out, present_key, present_value = Attention <q_num_heads={heads}, kv_num_heads={kv_heads}{more}> ({given})
    }}"""


def feeds(heads: int, kv_heads: int, past: int = PAST) -> dict[str, np.ndarray]:
    """A causal mask over past and new tokens, the first of which is padding in the second row."""
    new, old = (BATCH, QUERIES, kv_heads * HEAD_DIM), (BATCH, kv_heads, past, HEAD_DIM)
    mask = np.tril(np.ones((BATCH, 1, QUERIES, past + QUERIES), bool), past)
    mask[1, :, 1:, 0] = False
    arrays = random_arrays(0, q=(BATCH, QUERIES, heads * HEAD_DIM), k=new, v=new, past_key=old, past_value=old)
    return arrays | {"mask": mask}


@pytest.mark.parametrize("past", [0, PAST])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (6, 1), (2, 2)])
def test_numbers(heads: int, kv_heads: int, past: int) -> None:
    before = program(attention(heads, kv_heads))
    after = rewritten(before, AttentionToPrimitives(), opset=17)
    assert (after.fired, after.reasons) == (1, [])
    assert (after.operators["MatMul"], after.operators["Softmax"], after.operators["Attention"]) == (2, 1, 0)
    given = feeds(heads, kv_heads, past)
    assert_equal(run(after.model, given), run(before, given), 2e-6)
    unmasked = given | {"mask": np.ones_like(given["mask"])}  # the control
    assert np.abs(run(after.model, unmasked)["out"] - run(before, given)["out"]).max() > 0.05


def test_one_mask_serves_all_layers() -> None:
    """Two layers of grouped heads tile it once."""
    layer = f"again, key, value = Attention <q_num_heads=4, kv_num_heads=2> ({INPUTS})"
    text = attention(4, 2).replace("(float[B, S, 32] out,", "(float[B, S, 32] out, float[B, S, 32] again,")
    after = rewritten(program(text.rstrip().removesuffix("}") + f"{layer} }}"), AttentionToPrimitives(), opset=17)
    assert after.fired == 2
    masks = [node for node in after.model.graph.node if node.op_type == "Concat" and set(node.input) == {"mask"}]
    assert len(masks) == 1


def test_a_query_that_sees_nothing_stays_finite() -> None:
    given = feeds(4, 2)
    given["mask"][0, 0, 0] = False
    assert np.isfinite(run(rewritten(program(attention(4, 2)), AttentionToPrimitives()).model, given)["out"]).all()


def test_half_precision() -> None:
    """Scores of 115 200 before they are scaled, 40 729 after; the softmax is a float32 one."""
    given: Arrays = {
        name: values if name == "mask" else values.astype(np.float16) for name, values in feeds(4, 2).items()
    }
    given["q"][:], given["k"][:] = 120, np.where(given["k"] > 0, 120, 119)
    after = rewritten(program(attention(4, 2, dtype="float16")), AttentionToPrimitives(), opset=17)
    assert after.operators["Cast"] == 2
    wide = {name: values if name == "mask" else values.astype(np.float32) for name, values in given.items()}
    assert_equal(run(after.model, given), run(program(attention(4, 2)), wide), 5e-3)


def test_causal_by_itself_is_left_alone() -> None:
    text = attention(4, 2, more=", is_causal=1")
    assert_left_alone(program(text), AttentionToPrimitives(), "it is causal by itself; the mask must say it")


@pytest.mark.parametrize(
    ("given", "count"), [("q, k, v, mask", 4), ("q, k, v, , past_key, past_value", 6)], ids=["no cache", "no mask"]
)
def test_what_lacks_an_input_is_left_alone(given: str, count: int) -> None:
    reason = f"expected q, k, v, mask and the two pasts, found {count} inputs"
    text = attention(4, 2, given=given)
    if "past" not in given:
        text = text.split("=>")[0] + "=> (float[B, S, 32] out) { out = " + text.split(" = ")[-1]
    assert_left_alone(program(text), AttentionToPrimitives(), reason)


def test_other_operators_are_left_alone() -> None:
    assert_left_alone(program("g (float[2] x) => (float[2] y) { y = Softmax (x) }"), AttentionToPrimitives())
