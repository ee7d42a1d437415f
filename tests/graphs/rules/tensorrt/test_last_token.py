"""The last token of each row, by an index the caller gives."""

from __future__ import annotations

import numpy as np
import pytest

from glm_export.graphs.rules.tensorrt.last_token import LastTokenByIndex
from tests.helpers.small_programs import assert_left_alone, program, random_arrays, rewritten, run

WEIGHTS = {
    "minus_one": np.array([-1]), "zero": np.array([0]), "end": np.array([np.iinfo(np.int64).max]),
    "one": np.array([1]), "head": random_arrays(1, head=(4, 5))["head"],
}  # fmt: skip
WHOLE = "rows = Slice (x, zero, end, zero)\n last = Slice (rows, minus_one, end, one)"


def last_token(last: str, reader: str = "MatMul (last, head)") -> str:
    return f"""g (int64[B] last_token_ids, float[B, S, 4] x) => (float[B, L, 5] logits) {{
        {last}
        logits = {reader}
    }}"""


@pytest.mark.parametrize("last", ["last = Slice (x, minus_one, end, one)", WHOLE], ids=["one slice", "two"])
def test_numbers(last: str) -> None:
    before = program(last_token(last), WEIGHTS)
    after = rewritten(before, LastTokenByIndex())
    assert (after.fired, after.reasons) == (1, [])
    assert after.operators == {"Unsqueeze": 1, "GatherND": 1, "MatMul": 1}
    feeds = random_arrays(0, x=(2, 3, 4)) | {"last_token_ids": np.array([2, 0])}
    found = run(after.model, feeds)["logits"]
    for row, index in enumerate(feeds["last_token_ids"]):
        alone = {"last_token_ids": feeds["last_token_ids"], "x": feeds["x"][row : row + 1, : index + 1]}
        np.testing.assert_allclose(found[row : row + 1], run(before, alone)["logits"], atol=1e-6)


def test_a_slice_with_another_reader_is_left_alone() -> None:
    text = last_token("last = Slice (x, minus_one, end, one)\n negative = Neg (last)", "MatMul (negative, head)")
    assert_left_alone(program(text, WEIGHTS), LastTokenByIndex())


def test_a_slice_that_is_also_read_elsewhere_is_left_alone() -> None:
    text = last_token(
        "last = Slice (x, minus_one, end, one)\n product = MatMul (last, head)\n both = Size (last)",
        "Mul (product, both_float)",
    )
    text = text.replace("logits =", "both_float = Cast <to=1> (both)\n        logits =")
    assert_left_alone(program(text, WEIGHTS), LastTokenByIndex())


def test_another_choice_of_tokens_is_left_alone() -> None:
    text = last_token("last = Gather <axis=1> (x, minus_one)")
    assert_left_alone(program(text, WEIGHTS), LastTokenByIndex())
