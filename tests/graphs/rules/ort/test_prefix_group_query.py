"""A prefix family's attention in ONNX Runtime's fused operator: rows apart, together, over one buffer, and controls."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from glm_export.graphs.rules.ort.prefix_group_query import PrefixAttentionToGroupQuery
from tests.helpers.small_programs import assert_left_alone, program, random_arrays, rewritten, run

HEADS, HEAD_DIM, COLUMNS = 4, 16, 12
CHANNELS = HEADS * HEAD_DIM
BOUND = 5e-6
CONTEXTS, LENGTHS = (4, 2, 3), (6, 3, 5)
"""Of three rows: tokens that see each other, and all."""
SIZES = {"sizes": np.array([CHANNELS] * 3)}


def attention(between: str = "", inputs: str = "int64[B] write_indices, ", dtype: str = "float") -> str:
    """``between``: what stands between the split and the attention."""
    cache = f"{dtype}[B, {HEADS}, P, {HEAD_DIM}]"
    key = "k_other" if between else "k"
    return f"""g (int64[B, S] input_ids, {dtype}[B, S, {3 * CHANNELS}] qkv, bool[B, 1, S, T] attention_mask, {inputs}
    {cache} past_key, {cache} past_value) =>
    ({dtype}[B, S, {CHANNELS}] out, {cache.replace("P", "T")} present_key, {cache.replace("P", "T")} present_value) {{
        q, k, v = Split <axis=-1> (qkv, sizes)
        {between}
        out, present_key, present_value = Attention <q_num_heads={HEADS}, kv_num_heads={HEADS}>
            (q, {key}, v, attention_mask, past_key, past_value)
    }}"""


def sees(context: int, length: int) -> np.ndarray:
    """``[T, T]`` of a row of so many tokens."""
    return np.tri(length, dtype=bool) | (np.arange(length) < context)


class Buffer:
    """The program over one buffer, past and present at once, filled with what nobody may see."""

    def __init__(self, model: onnx.ModelProto, rows: int, dtype: Any = np.float32) -> None:
        self.runtime = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        shape = (rows, HEADS, COLUMNS, HEAD_DIM)
        self.held = [onnxruntime.OrtValue.ortvalue_from_numpy(np.full(shape, 9, dtype)) for _ in "kv"]

    def call(self, qkv: np.ndarray, mask: np.ndarray, write: list[int]) -> np.ndarray:
        binding = self.runtime.io_binding()
        for name, array in {
            "input_ids": np.zeros(qkv.shape[:2], np.int64), "qkv": qkv, "attention_mask": mask,
            "write_indices": np.array(write),
        }.items():  # fmt: skip
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name, value in zip(("key", "value"), self.held, strict=True):
            binding.bind_ortvalue_input(f"past_{name}", value)
            binding.bind_ortvalue_output(f"present_{name}", value)
        binding.bind_output("out")
        self.runtime.run_with_iobinding(binding)
        found: np.ndarray = binding.get_outputs()[-1].numpy()
        return found


def rows_alone(model: onnx.ModelProto, qkv: np.ndarray) -> list[np.ndarray]:
    """Each read whole by the standard operator, without padding or past."""
    nothing = np.zeros((1, HEADS, 0, HEAD_DIM), qkv.dtype)
    found = []
    for row, (context, length) in enumerate(zip(CONTEXTS, LENGTHS, strict=True)):
        mask = sees(context, length)[None, None]
        given = {"qkv": qkv[row : row + 1, :length], "attention_mask": mask, "past_key": nothing, "past_value": nothing}
        given |= {"input_ids": np.zeros((1, length), np.int64), "write_indices": np.zeros(1, np.int64)}
        found.append(run(model, given)["out"][0])
    return found


def difference_on_one_buffer(model: onnx.ModelProto, qkv: np.ndarray, alone: list[np.ndarray]) -> float:
    """Prompts of all but two tokens padded together, a step of all rows, and a last one; against rows alone."""
    rows, width = len(LENGTHS), max(LENGTHS) - 2
    buffer, worst = Buffer(model, rows, qkv.dtype), 0.0
    mask = np.zeros((rows, 1, width, width), bool)
    for row, length in enumerate(LENGTHS):
        mask[row, 0, : length - 2, : length - 2] = sees(CONTEXTS[row], length)[: length - 2, : length - 2]
    found = buffer.call(qkv[:, :width], mask, [0] * rows)
    assert np.isfinite(found).all()
    for row, length in enumerate(LENGTHS):
        if CONTEXTS[row] <= length - 2:
            worst = max(worst, float(np.abs(found[row, : length - 2] - alone[row][: length - 2]).max()))
    for step in (2, 1):
        write = [length - step for length in LENGTHS]
        seen_BT = np.arange(max(write) + 1) <= np.array(write)[:, None]
        tokens = np.stack([qkv[row, column : column + 1] for row, column in enumerate(write)])
        found = buffer.call(tokens, seen_BT[:, None, None], write)
        for row, column in enumerate(write):
            if column >= CONTEXTS[row]:
                worst = max(worst, float(np.abs(found[row, 0] - alone[row][column]).max()))
    return worst


@pytest.mark.parametrize(("between", "inputs"), [("", 1), ("k_other = Neg (k)", 3)], ids=["packed", "apart"])
def test_rows_on_one_buffer(between: str, inputs: int) -> None:
    """Rows of other lengths, padded, each written where it is told; what lay in the buffer is seen by nobody."""
    before = program(attention(between), SIZES)
    after = rewritten(before, PrefixAttentionToGroupQuery())
    assert (after.fired, after.reasons, after.operators["Attention"]) == (1, [], 0)
    (fused,) = (node for node in after.model.graph.node if node.op_type == "GroupQueryAttention")
    assert sum(bool(name) for name in fused.input[:3]) == inputs
    qkv = random_arrays(0, qkv=(3, max(LENGTHS), 3 * CHANNELS))["qkv"]
    assert difference_on_one_buffer(after.model, qkv, rows_alone(before, qkv)) <= BOUND


def causal(model: onnx.ModelProto) -> None:
    """As if the operator masked by itself."""
    (node,) = (node for node in model.graph.node if node.op_type == "GroupQueryAttention")
    kept = [attribute for attribute in node.attribute if attribute.name != "causal"]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute("causal", 1)])


def another_rows_bias(model: onnx.ModelProto) -> None:
    """Rows see what their neighbours should."""
    (node,) = (node for node in model.graph.node if node.op_type == "GroupQueryAttention")
    model.graph.initializer.append(helper.make_tensor("neighbour", onnx.TensorProto.INT64, [3], [1, 2, 0]))
    at = list(model.graph.node).index(node)
    model.graph.node.insert(at, helper.make_node("Gather", [node.input[10], "neighbour"], ["moved"], axis=0))
    (node,) = (node for node in model.graph.node if node.op_type == "GroupQueryAttention")
    node.input[10] = "moved"


@pytest.mark.parametrize("plant", [causal, another_rows_bias])
def test_controls(plant: Any) -> None:
    before = program(attention(), SIZES)
    after = rewritten(before, PrefixAttentionToGroupQuery()).model
    plant(after)
    qkv = random_arrays(0, qkv=(3, max(LENGTHS), 3 * CHANNELS))["qkv"]
    assert difference_on_one_buffer(after, qkv, rows_alone(before, qkv)) > 1000 * BOUND


def test_a_query_sees_itself_at_least() -> None:
    """As in the canonical program: a mask that shows it nothing leaves it its own value."""
    after = rewritten(program(attention(), SIZES), PrefixAttentionToGroupQuery())
    qkv = random_arrays(0, qkv=(2, 3, 3 * CHANNELS))["qkv"]
    found = Buffer(after.model, 2).call(qkv, np.zeros((2, 1, 3, 3), bool), [0, 0])
    np.testing.assert_allclose(found, qkv[:, :, 2 * CHANNELS :], atol=BOUND)


def test_the_bias_is_made_once_for_all_layers() -> None:
    text = attention().replace("present_value) {", f"present_value, float[B, S, {CHANNELS}] again) {{")
    layer = f"""again, more_key, more_value = Attention <q_num_heads={HEADS}, kv_num_heads={HEADS}>
        (q, k, v, attention_mask, past_key, past_value) }}"""
    after = rewritten(program(text.rstrip().removesuffix("}") + layer, SIZES), PrefixAttentionToGroupQuery())
    assert (after.fired, after.operators["GroupQueryAttention"]) == (2, 2)
    assert (after.operators["Where"], after.operators["ReduceSum"]) == (1, 1)


def test_a_program_that_is_not_told_where_to_write_is_left_alone() -> None:
    assert_left_alone(program(attention(inputs=""), SIZES), PrefixAttentionToGroupQuery())


def test_one_that_masks_by_itself_is_left_alone() -> None:
    text = attention().replace(f"kv_num_heads={HEADS}>", f"kv_num_heads={HEADS}, is_causal=1>")
    reason = "it is causal by itself; the mask must say it"
    assert_left_alone(program(text, SIZES), PrefixAttentionToGroupQuery(), reason)
