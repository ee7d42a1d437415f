"""Real tokens alone: each rule against the padded program at the places of real tokens."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from glm_export.graphs.rules.ort.query_lengths import AttentionToldLengths
from glm_export.graphs.rules.ort.unpadded import (
    LastOfRealTokens,
    RealTokensEmbedded,
    RowsAttended,
    RowsTold,
    RowsTurned,
)
from glm_export.sessions.onnxruntime.runtime import reads_ragged
from tests.helpers.small_programs import assert_left_alone, program, random_arrays, rewritten, run

NEW = np.array([1, 4, 0, 2])
ROWS, COLUMNS, TOKENS = 4, 4, 7
REAL = np.arange(COLUMNS) < NEW[:, None]
IDS = np.random.default_rng(0).integers(0, 20, (ROWS, COLUMNS))
TOLD = {"input_ids": IDS, "query_seqlens": NEW.astype(np.int32)}
HIDDEN = 6
OWN = "int64[B, S] input_ids, int32[B] query_seqlens"


def test_real_ids_are_looked_up_and_counted() -> None:
    """One behind another, without those of padding; what asks for their number gets that."""
    text = f"""g ({OWN}) => (float[B, S, {HIDDEN}] x, int64[2] shape, int64 size) {{
        shape = Shape (input_ids)
        size = Size (input_ids)
        x = Gather (table, input_ids)
    }}"""
    table = random_arrays(1, table=(20, HIDDEN))
    after = rewritten(program(text, table), RealTokensEmbedded())
    found = run(after.model, TOLD)
    assert after.fired == 1
    np.testing.assert_array_equal(found["x"], table["table"][IDS[REAL]][None])
    assert (found["shape"].tolist(), int(found["size"])) == ([1, TOKENS], TOKENS)


def test_another_lookup_is_left_alone() -> None:
    text = f"g ({OWN}, int64[B, S] places) => (float[B, S, {HIDDEN}] x) {{ x = Gather (table, places) }}"
    assert_left_alone(program(text, random_arrays(1, table=(20, HIDDEN))), RealTokensEmbedded())


ROTATION = f"""g ({OWN}, float[B, S, 16] x, float[32, 2] cos, float[32, 2] sin, int64[B, S] places)
    => (float[B, S, 16] turned) {{
        turned = RotaryEmbedding <num_heads=2, rotary_embedding_dim=4, interleaved=1> (x, cos, sin, places)
    }}"""


def test_rows_turn_by_their_own_positions() -> None:
    before = program(ROTATION)
    after = rewritten(before, RowsTurned())
    given = random_arrays(2, x=(ROWS, COLUMNS, 16), cos=(32, 2), sin=(32, 2))
    given |= {"places": np.array([5, 0, 9, 30])[:, None] + np.arange(COLUMNS).clip(max=1)} | TOLD
    padded = run(before, given)["turned"]
    packed = given | {"x": given["x"][REAL][None]}
    found = run(after.model, packed)["turned"]
    np.testing.assert_array_equal(found, padded[REAL][None])
    # The control: positions of another row.
    other = run(after.model, packed | {"places": np.roll(given["places"], 1, axis=0)})["turned"]
    assert np.abs(other - found).max() > 1e-2


def test_heads_on_an_axis_of_their_own_are_refused() -> None:
    text = ROTATION.replace("float[B, S, 16]", "float[B, 2, S, 8]").replace("num_heads=2, ", "")
    assert_left_alone(program(text), RowsTurned(), "its heads are an axis of their own")


HEADS, HEAD_DIM, CAPACITY = 2, 16, 12
PACKED, CACHE = f"float[B, S, {HEADS * HEAD_DIM}]", f"float[B, {HEADS}, T, {HEAD_DIM}]"
ATTENTION = f"""g ({PACKED} q, {PACKED} k, {PACKED} v, {CACHE} past_key, {CACHE} past_value, int32[B] lengths,
    int32 total, {OWN}) => ({PACKED} out, {CACHE} key, {CACHE} value, int64[B, S] ids) {{
        ids = Identity (input_ids)
        out, key, value = com.microsoft.GroupQueryAttention <num_heads={HEADS}, kv_num_heads={HEADS}>
            (q, k, v, past_key, past_value, lengths, total)
    }}"""


@pytest.mark.skipif(
    not reads_ragged(["CPUExecutionProvider"]), reason=f"ONNX Runtime {onnxruntime.__version__} has no such input"
)
def test_attention_sees_rows() -> None:
    before = rewritten(program(ATTENTION), AttentionToldLengths()).model
    after = rewritten(before, RowsAttended())
    assert after.fired == 1
    heads, size = (ROWS, COLUMNS, HEADS * HEAD_DIM), (ROWS, HEADS, CAPACITY, HEAD_DIM)
    given = random_arrays(0, q=heads, k=heads, v=heads, past_key=size, past_value=size)
    lengths = np.array([5, 2, 3, 0]) + np.maximum(NEW, 1) - 1
    given |= {"lengths": lengths.astype(np.int32), "total": np.array(CAPACITY, np.int32)} | TOLD
    padded = run(before, given)
    packed = {name: given[name][REAL][None] for name in "qkv"}
    found = run(after.model, given | packed)
    np.testing.assert_array_equal(found["out"], padded["out"][REAL][None])
    for name in ("key", "value"):
        for row, length in enumerate(lengths):
            np.testing.assert_array_equal(found[name][row, :, : length + 1], padded[name][row, :, : length + 1])


def test_attention_that_is_told_nothing_is_refused() -> None:
    assert_left_alone(program(ATTENTION), RowsAttended(), "nothing tells it how many tokens each row has")


def test_the_last_of_each_row() -> None:
    """Also its last few: columns behind a row's own are its last again."""
    text = f"""g ({OWN}, float[B, S, {HIDDEN}] x, int64[B, K, 1] columns) => (float[B, K, {HIDDEN}] last) {{
        last = GatherND <batch_dims=1> (x, columns)
    }}"""
    before = program(text)
    after = rewritten(before, LastOfRealTokens())
    given = random_arrays(3, x=(ROWS, COLUMNS, HIDDEN))
    columns = np.array([[0, 1], [2, 3], [0, 0], [1, 2]])[..., None]
    own = np.minimum(columns, np.maximum(NEW - 1, 0)[:, None, None])
    padded = run(before, given | TOLD | {"columns": own})["last"]
    packed = {"x": given["x"][REAL][None], "columns": columns} | TOLD
    found = run(after.model, packed)["last"]
    np.testing.assert_array_equal(found[NEW > 0], padded[NEW > 0])
    assert np.isfinite(found).all()


def test_another_gathering_is_left_alone() -> None:
    text = f"g ({OWN}, float[B, S] x, int64[N, 2] at) => (float[N] found) {{ found = GatherND (x, at) }}"
    assert_left_alone(program(text), LastOfRealTokens())


def test_outputs_are_rows_and_readers_read_on() -> None:
    text = f"""g ({OWN}, float[B, S, {HIDDEN}] x) => (float[B, S, {HIDDEN}] logits, float[B, S, {HIDDEN}] more) {{
        logits = Neg (x)
        more = Abs (logits)
    }}"""
    after = rewritten(program(text), RowsTold(frozenset({"logits"})))
    given = random_arrays(4, x=(ROWS, COLUMNS, HIDDEN))["x"]
    found = run(after.model, {"x": given[REAL][None]} | TOLD)
    assert after.fired == 1
    np.testing.assert_array_equal(found["logits"][REAL], -given[REAL])
    np.testing.assert_array_equal(found["more"], np.abs(given[REAL])[None])
    # Padding holds the row's last token, or for a row without any something finite.
    np.testing.assert_array_equal(found["logits"][0, 1:], np.broadcast_to(-given[0, 0], (COLUMNS - 1, HIDDEN)))


def test_other_outputs_are_left_alone() -> None:
    text = f"g ({OWN}, float[B, S, {HIDDEN}] x) => (float[B, S, {HIDDEN}] logits) {{ logits = Neg (x) }}"
    assert_left_alone(program(text), RowsTold(frozenset({"hidden_states.0"})))
