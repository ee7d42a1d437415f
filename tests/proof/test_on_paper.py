"""W8A8 on paper: integers as TensorRT and ONNX document them, and what else a kernel might do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.errors import InputError
from glm_export.proof.on_paper import Arithmetic, PaperProgram, StoredWeight, product, quantize
from glm_export.sessions.onnxruntime.session import OrtSession
from tests.helpers.walked import poems

HALVES = np.array([-200.0, -127.5, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 126.5, 127.5, 200.0], np.float32)


def test_ties_go_to_the_even_integer_and_both_ends_saturate() -> None:
    assert quantize(HALVES, 1.0).tolist() == [-128, -128, -2, -2, 0, 0, 2, 2, 126, 127, 127]
    assert quantize(HALVES * 0.25, 0.25).tolist() == quantize(HALVES, 1.0).tolist()


@pytest.mark.parametrize(
    ("how", "integers"),
    [
        (Arithmetic(ties="away"), [-128, -128, -3, -2, -1, 1, 2, 3, 127, 127, 127]),
        (Arithmetic(low=-127), [-127, -127, -2, -2, 0, 0, 2, 2, 126, 127, 127]),
        (Arithmetic(low=0, high=255), [0, 0, 0, 0, 0, 0, 2, 2, 126, 128, 200]),
    ],
)
def test_control_another_arithmetic_makes_other_integers(how: Arithmetic, integers: list[int]) -> None:
    assert quantize(HALVES, 1.0, how).tolist() == integers


def test_rounding_is_onnxs_own() -> None:
    """The reference evaluator's QuantizeLinear, over random values and ties at a scale that is no power of two."""
    x = np.concatenate([np.random.default_rng(0).normal(0, 40, 5000), np.arange(-300, 300) + 0.5]).astype(np.float32)
    node = helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["y"])
    values = [
        helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in (("x", 1, [None]), ("scale", 1, []), ("zero", TensorProto.INT8, []))
    ]
    graph = helper.make_graph([node], "g", values, [helper.make_tensor_value_info("y", TensorProto.INT8, [None])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    scale = np.float32(0.37)
    (theirs,) = ReferenceEvaluator(model).run(None, {"x": x, "scale": scale, "zero": np.int8(0)})
    assert np.array_equal(quantize(x, float(scale)), theirs)


def weight(integers: np.ndarray) -> StoredWeight:
    return StoredWeight(
        name="w", scale=0.1, integers=integers, scales=np.linspace(0.01, 0.02, integers.shape[1]).astype(np.float32)
    )


def test_sums_are_whole_numbers() -> None:
    """8192 products of the largest integers: float32 would lose the last bits of the sum."""
    stored = weight(np.full((8192, 3), 127, np.int8))
    integers = np.full((2, 8192), 127)
    integers[1, 0] = 126
    ours = product(integers, stored)
    assert np.array_equal(ours[0], np.float32(127 * 127 * 8192) * (np.float32(0.1) * stored.scales))
    apart = product(integers, stored, Arithmetic(scaled_together=False))
    assert np.allclose(ours, apart, rtol=3e-7)
    # Scales of 1e-3 are below float16's normal numbers once they are multiplied.
    assert not np.allclose(ours, product(integers, stored, Arithmetic(scaling="float16")), rtol=1e-5)


def test_sums_that_leave_int32_are_refused() -> None:
    with pytest.raises(InputError, match=r"w: sums in int32 should stay within 2\^31, found 2209673000"):
        product(np.full((1, 137_000), 127), weight(np.full((137_000, 1), 127, np.int8)))


def test_a_program_on_paper_is_the_program(tmp_path: Path) -> None:
    """The embedded model: ONNX's evaluator with our integer products, beside ONNX Runtime."""
    checkpoint = api.open_checkpoint("demo")
    ranges = api.calibrate(checkpoint, tmp_path / "ranges", corpus=poems(checkpoint, 2))
    program = api.export(checkpoint, tmp_path / "program", dialect="onnx", recipe="int8-static", ranges=ranges)
    paper, layers = PaperProgram(program.model_path), program.config.num_layers
    assert len(paper.weights) == 4 * layers
    config = program.config
    past = np.zeros((1, config.kv_heads, 0, config.head_dim), np.float32)
    tensors = {
        "input_ids": np.arange(20, 32)[None], "attention_mask": np.ones((1, 12), np.int64),
        "position_ids": np.arange(12)[None],
    } | {spec.name: past for spec in program.signature.inputs if spec.is_cache}  # fmt: skip
    ours = paper.run(tensors)["logits"]
    assert [one.weight.name for one in paper.entered][:4] == [
        f"layers.0.{name}.weight" for name in ("attention.qkv", "attention.dense", "mlp.gate_up", "mlp.down")
    ]  # fmt: skip
    with OrtSession(program) as session:
        theirs = session.run(tensors)["logits"]
    scale = np.abs(theirs).max()
    assert np.abs(ours - theirs).max() <= 2e-6 * scale
    # Control: an arithmetic of unsigned integers is another model.
    wrong = PaperProgram(program.model_path, Arithmetic(low=0, high=255)).run(tensors)["logits"]
    assert np.abs(wrong - theirs).max() > 0.1 * scale


def test_a_program_without_such_products_is_refused(demo_program: OnnxProgram) -> None:
    with pytest.raises(InputError, match="has no product in 8 bits; export with --recipe int8-static"):
        PaperProgram(demo_program.model_path)
