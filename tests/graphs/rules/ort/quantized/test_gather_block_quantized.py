"""The lookup of tokens in a table of integers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from glm_export.calibration.formats import decode
from glm_export.graphs.rules.ort.quantized.gather_block_quantized import LOOKUP, QuantizedGather
from glm_export.spec.weight_formats import EMBEDDING, BlockWeights
from tests.helpers.small_programs import assert_left_alone, program, random_arrays, rewritten, run, stored_tensors

VOCABULARY, HIDDEN = 12, 64
TABLE = random_arrays(0, table=(VOCABULARY, HIDDEN))["table"]
IDS = np.array([[3, 11, 0], [5, 5, 7]])
FORM = BlockWeights(bits=4, block=32)


def lookup(name: str = EMBEDDING) -> str:
    return f'g (int64[B, S] ids) => (float[B, S, {HIDDEN}] y) {{ y = Gather <axis=0> ("{name}", ids) }}'


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_numbers(bits: int, symmetric: bool) -> None:
    """Rows are those the format keeps; a float table's are further off than any tolerance."""
    form = BlockWeights(bits=bits, block=32, symmetric=symmetric)
    before, weight = program(lookup(), {EMBEDDING: TABLE}), torch.from_numpy(TABLE)
    after = rewritten(before, QuantizedGather(form, "float32"), stored_tensors(form, weight, EMBEDDING))
    assert (after.fired, after.reasons) == (1, [])
    assert after.operators == {LOOKUP: 1}
    found = run(after.model, {"ids": IDS})["y"]
    np.testing.assert_allclose(found, decode(form, weight).numpy()[IDS], atol=1e-6)
    largest = np.abs(found - run(before, {"ids": IDS})["y"]).max()
    assert 1e-4 < largest < (0.5 if bits == 4 else 0.05)


def test_another_table_is_left_alone() -> None:
    assert_left_alone(program(lookup("positions"), {"positions": TABLE}), QuantizedGather(FORM, "float32"))


def test_a_table_the_recipe_leaves_out_is_left_alone() -> None:
    assert_left_alone(program(lookup(), {EMBEDDING: TABLE}), QuantizedGather(None, "float32"))


def test_another_operator_on_the_table_is_left_alone() -> None:
    text = f'g (float[S, 3] x) => (float[S, {HIDDEN}] y) {{ y = MatMul (x, "{EMBEDDING}") }}'
    assert_left_alone(program(text, {EMBEDDING: TABLE[:3]}), QuantizedGather(FORM, "float32"))
