"""The last real token of rows padded on the right, counted from their mask."""

from __future__ import annotations

import numpy as np
import pytest

from glm_export.graphs.rules.ort.last_token import LastTokenOfEachRow
from glm_export.spec.signature import RECENT, RECENT_TOKENS
from tests.helpers.small_programs import assert_left_alone, program, random_arrays, rewritten, run

WEIGHTS = {
    "minus_one": np.array([-1]), "end": np.array([np.iinfo(np.int64).max]), "one": np.array([1]),
    "head": random_arrays(1, head=(4, 5))["head"],
}  # fmt: skip


def last_token(mask: str = "int64[B, T]", reader: str = "MatMul (last, head)") -> str:
    return f"""g (int64[B, S] input_ids, {mask} attention_mask, float[B, S, 4] x) => (float[B, 1, 5] logits) {{
        last = Slice (x, minus_one, end, one)
        logits = {reader}
    }}"""


@pytest.mark.parametrize(
    ("real", "columns", "expected"),
    [([3, 2], 3, [2, 1]), ([7, 6], 7, [2, 2]), ([1, 3], 3, [0, 2])],
    ids=["prefill", "behind a past", "a single token"],
)
def test_numbers(real: list[int], columns: int, expected: list[int]) -> None:
    """Of three queries a row; once there is a past, the last query is the last token."""
    before = program(last_token(), WEIGHTS)
    after = rewritten(before, LastTokenOfEachRow())
    assert (after.fired, after.reasons) == (1, [])
    assert (after.operators["GatherND"], after.operators["Slice"]) == (1, 0)
    feeds = random_arrays(0, x=(2, 3, 4)) | {
        "input_ids": np.zeros((2, 3), np.int64),
        "attention_mask": (np.arange(columns) < np.array(real)[:, None]).astype(np.int64),
    }
    found = run(after.model, feeds)["logits"]
    for row, index in enumerate(expected):
        alone = {name: values[row : row + 1] for name, values in feeds.items()}
        alone["x"] = alone["x"][:, : index + 1]
        np.testing.assert_allclose(found[row : row + 1], run(before, alone)["logits"], atol=1e-6)


def test_a_program_that_is_told() -> None:
    """A mask of pairs says nothing of lengths."""
    model = program(last_token("int64[B] last_token_ids, bool[B, 1, S, T]"), WEIGHTS)
    after = rewritten(model, LastTokenOfEachRow())
    assert (after.fired, after.operators["GatherND"], after.operators["Slice"]) == (1, 1, 0)
    x = random_arrays(0, x=(2, 3, 4))["x"]
    found = run(after.model, {"x": x, "last_token_ids": np.array([2, 0])})["logits"]
    for row, index in enumerate((2, 0)):
        np.testing.assert_allclose(found[row, 0], x[row, index] @ WEIGHTS["head"], atol=1e-6)
    assert np.abs(found[1, 0] - x[1, 2] @ WEIGHTS["head"]).max() > 0.1  # the control


def test_where_nothing_says_where_rows_end() -> None:
    model = program(last_token("bool[B, 1, S, T]"), WEIGHTS)
    assert_left_alone(model, LastTokenOfEachRow(), "nothing says where rows end")


def test_a_slice_with_another_reader_is_left_alone() -> None:
    text = last_token().replace("MatMul (last, head)", "MatMul (negative, head)")
    text = text.replace("logits =", "negative = Neg (last)\n        logits =")
    assert_left_alone(program(text, WEIGHTS), LastTokenOfEachRow())


def test_another_choice_of_tokens_is_left_alone() -> None:
    text = last_token().replace("Slice (x, minus_one, end, one)", "Gather <axis=1> (x, minus_one)")
    assert_left_alone(program(text, WEIGHTS), LastTokenOfEachRow())


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize(
    ("columns", "new"),
    [(3, (3, 2)), (RECENT_TOKENS, (RECENT_TOKENS, 1)), (24, (24, 5)), (24, (18, 17))],
    ids=["all", "as many as are told", "a longer prompt", "its end"],
)
def test_the_last_few(columns: int, new: tuple[int, ...], told: bool) -> None:
    """Of a row with n tokens those from max(n - 17, 0) on; behind them padding."""
    given = "int64[B] last_token_ids, bool[B, 1, S, T]" if told else "int64[B, T]"
    text = last_token(given).replace("float[B, 1, 5] logits", f"float[B, {RECENT}, 5] logits")
    after = rewritten(program(text, WEIGHTS), LastTokenOfEachRow())
    assert (after.fired, after.operators["GatherND"], after.operators["Slice"]) == (1, 1, 1)
    x = random_arrays(0, x=(2, columns, 4))["x"]
    feeds = {"x": x, "input_ids": np.zeros((2, columns), np.int64)}
    if told:
        feeds["last_token_ids"] = np.array(new) - 1
    else:
        feeds["attention_mask"] = (np.arange(columns) < np.array(new)[:, None]).astype(np.int64)
    found = run(after.model, feeds)["logits"]
    assert found.shape[1] == min(columns, RECENT_TOKENS)
    whole = x @ WEIGHTS["head"]
    for row, count in enumerate(new):
        first, kept = max(count - RECENT_TOKENS, 0), min(count, RECENT_TOKENS)
        np.testing.assert_allclose(found[row, :kept], whole[row, first:count], atol=1e-6)
    if max(new) > RECENT_TOKENS:
        assert np.abs(found[0] - whole[0, :RECENT_TOKENS]).max() > 0.1  # the control
