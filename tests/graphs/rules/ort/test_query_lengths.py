"""Told how many tokens each row has: attention, and what counts new tokens."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from glm_export.graphs.rewriter import apply_rule
from glm_export.graphs.rules.ort.query_lengths import PLACE, AttentionToldLengths, NewTokensTold
from glm_export.sessions.onnxruntime.runtime import reads_ragged
from tests.helpers.small_programs import assert_left_alone, program, random_arrays, rewritten, run

HEADS, HEAD_DIM, COLUMNS, QUERIES = 2, 16, 12, 4
BEFORE, NEW = np.array([5, 2, 3]), np.array([1, 4, 0])


def attention(causal: str = "") -> str:
    packed, cache = f"float[B, S, {HEADS * HEAD_DIM}]", f"float[B, {HEADS}, T, {HEAD_DIM}]"
    return f"""g ({packed} q, {packed} k, {packed} v, {cache} past_key, {cache} past_value, int32[B] lengths,
    int32 total, int32[B] query_seqlens) => ({packed} out, {cache} key, {cache} value) {{
        out, key, value = com.microsoft.GroupQueryAttention <num_heads={HEADS}, kv_num_heads={HEADS}{causal}>
            (q, k, v, past_key, past_value, lengths, total)
    }}"""


def test_every_attribute_and_input_stays() -> None:
    before = program(attention(", scale=0.5, rotary_interleaved=1"))
    after = rewritten(before, AttentionToldLengths())
    (old,), (new,) = before.graph.node, after.model.graph.node
    assert (after.fired, after.reasons) == (1, [])
    assert list(new.attribute) == list(old.attribute)
    assert list(new.input) == [*old.input, *[""] * (PLACE - len(old.input)), "query_seqlens"]


@pytest.mark.skipif(
    not reads_ragged(["CPUExecutionProvider"]), reason=f"ONNX Runtime {onnxruntime.__version__} has no such input"
)
def test_numbers() -> None:
    """Each row as it is alone; a row without tokens keeps its cache."""
    before = program(attention())
    after = rewritten(before, AttentionToldLengths())
    heads, size = (3, QUERIES, HEADS * HEAD_DIM), (3, HEADS, COLUMNS, HEAD_DIM)
    given = random_arrays(0, q=heads, k=heads, v=heads, past_key=size, past_value=size)
    lengths = {"lengths": (BEFORE + np.maximum(NEW, 1) - 1).astype(np.int32), "total": np.array(COLUMNS, np.int32)}
    found = run(after.model, given | lengths | {"query_seqlens": NEW.astype(np.int32)})
    for row, count in enumerate(NEW):
        if not count:
            np.testing.assert_array_equal(found["key"][row, :, : BEFORE[row]], given["past_key"][row, :, : BEFORE[row]])
            continue
        alone = {name: array[row : row + 1] for name, array in given.items()}
        alone |= {name: alone[name][:, :count] for name in ("q", "k", "v")}
        alone |= {"lengths": lengths["lengths"][row : row + 1], "total": lengths["total"]}
        expected = run(before, alone | {"query_seqlens": NEW[row : row + 1].astype(np.int32)})
        np.testing.assert_allclose(found["out"][row : row + 1, :count], expected["out"], atol=1e-6)
        used = BEFORE[row] + count
        np.testing.assert_array_equal(found["key"][row, :, :used], expected["key"][0, :, :used])


def test_what_is_not_causal_is_refused() -> None:
    assert_left_alone(program(attention(", causal=0")), AttentionToldLengths(), "it is not causal")


COUNT = """g (int64[B, S] input_ids, int32[B] query_seqlens) => (int64[B, 1] count) {
    same = Equal (input_ids, OTHER)
    ones = Cast <to=7> (same)
    count = ReduceSum <keepdims=1> (ones, axes)
}"""
AXES = {"axes": np.array([1])}


def test_the_count_becomes_each_rows_own() -> None:
    before = program(COUNT.replace("OTHER", "input_ids"), AXES)
    after = rewritten(before, NewTokensTold())
    assert (after.fired, after.operators["ReduceSum"]) == (1, 0)
    found = run(after.model, {"query_seqlens": np.array([4, 0, 1], np.int32)})["count"]
    assert found.tolist() == [[4], [0], [1]]
    assert found.dtype == np.int64


def test_another_sum_is_left_alone() -> None:
    text = COUNT.replace("OTHER", "zero").replace("query_seqlens)", "query_seqlens, int64[1] zero)")
    assert_left_alone(program(text, AXES), NewTokensTold())


def test_constants_of_a_second_lowering_keep_apart_from_those_of_the_first() -> None:
    """Both count theirs from 0: the axis of one was taken for the axis of the other."""
    weights = {"constant_0": np.array([2]), **AXES}
    text = COUNT.replace("OTHER", "input_ids").replace("ReduceSum <keepdims=1> (ones, axes)", "Mul (sum, constant_0)")
    text = text.replace("count = Mul", "sum = ReduceSum <keepdims=1> (ones, axes)\n    count = Mul")
    after = rewritten(program(text, weights), NewTokensTold())
    found = run(after.model, {"query_seqlens": np.array([4, 0, 1], np.int32)})["count"]
    assert found.tolist() == [[8], [0], [2]]


def test_inputs_are_those_of_the_signature() -> None:
    """A program that does not have the input yet gets it by its name alone."""
    model = ir.from_proto(program(attention()))
    inputs = {value.name: value for value in model.graph.inputs if value.name is not None}
    assert apply_rule(model, AttentionToldLengths(), {}, inputs)[0] == 1
    assert inputs["query_seqlens"].uses()
