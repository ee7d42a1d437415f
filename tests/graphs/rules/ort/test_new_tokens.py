"""A call's new tokens, counted from its ids: the number ``Shape`` gives, and nothing of the host's memory."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from glm_export.graphs.rewriter import MATCHED, NOT_MINE, Emitter, MatchResult
from glm_export.graphs.rules.ort import new_tokens
from tests.helpers.small_programs import assert_left_alone, program, rewritten, run


class CountsInsteadOfShape:
    """``Shape(ids)[1]``, spread over the rows, becomes a count."""

    name = "count"

    def matches(self, node: ir.Node) -> MatchResult:
        return MATCHED if node.op_type == "Max" else NOT_MINE

    def rewrite(self, node: ir.Node, emit: Emitter) -> list[ir.Value]:
        count = new_tokens.count(emit)
        return [emit.op("Mul", count, emit.op("ReduceMax", new_tokens.ones(emit), emit.ints(1), keepdims=1))]


def counted(times: int) -> str:
    """The number of new tokens for each row, so many times."""
    outputs = ", ".join(f"int64[B, 1] n{index}" for index in range(times))
    nodes = "\n".join(f"n{index} = Max (zeros, new)" for index in range(times))
    return f"""g (int64[B, S] input_ids, int64[B, 1] zeros) => ({outputs}) {{
        new = Shape <start=1, end=2> (input_ids)
        {nodes}
    }}"""


@pytest.mark.parametrize("ids", [[[7, 0, -1], [0, 0, 0]], [[5], [0]]], ids=["prompt", "a single token"])
def test_numbers(ids: list[list[int]]) -> None:
    """Whatever the ids are, zeros and unknown ones among them."""
    before = program(counted(1))
    after = rewritten(before, CountsInsteadOfShape())
    assert (after.fired, after.operators["Shape"]) == (1, 0)
    feeds = {"input_ids": np.array(ids), "zeros": np.zeros((2, 1), np.int64)}
    expected = run(before, feeds)["n0"]
    assert expected.tolist() == [[len(ids[0])]] * 2
    np.testing.assert_array_equal(run(after.model, feeds)["n0"], expected)


def test_they_are_counted_once() -> None:
    after = rewritten(program(counted(3)), CountsInsteadOfShape())
    assert (after.fired, after.operators["Equal"], after.operators["ReduceSum"]) == (3, 1, 1)


def test_nothing_is_counted_where_nobody_asks() -> None:
    text = counted(1).replace("Max (zeros, new)", "Min (zeros, new)")
    assert_left_alone(program(text), CountsInsteadOfShape())
