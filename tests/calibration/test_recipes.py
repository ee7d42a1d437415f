"""Recipes: integers as ONNX Runtime's own quantizer makes them, programs that compute what their weights say."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings, strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi import _pybind_state

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.calibration import recipes
from glm_export.calibration.formats import decode
from glm_export.calibration.formats.blockwise import dequantize_rows, quantize_rows
from glm_export.calibration.recipe import Recipe
from glm_export.errors import InputError
from glm_export.proof.compare import TOLERANCES
from glm_export.spec.weight_formats import BlockWeights, ChannelWeights
from tests.helpers.golden_data import Golden

FORMS = [
    BlockWeights(bits=bits, block=block, symmetric=symmetric)
    for bits in (4, 8) for block in (16, 32, 128) for symmetric in (True, False)
]  # fmt: skip


def weight(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


# -- integers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_integers_are_those_of_onnxruntime(form: BlockWeights) -> None:
    rows, columns = 10, 256
    values = weight(rows, columns)
    blocks = columns // form.block
    packed = np.zeros((rows, blocks, form.block * form.bits // 8), np.uint8)
    scales = np.zeros(rows * blocks, np.float32)
    zero_points = np.zeros(rows * (-(-blocks * form.bits // 8)), np.uint8)
    quantize = getattr(_pybind_state, f"quantize_matmul_{form.bits}bits")
    transposed = np.ascontiguousarray(values.numpy().T)
    quantize(packed, transposed, scales, zero_points, form.block, rows, columns, form.symmetric)
    ours = quantize_rows(values, form)
    assert np.array_equal(ours.packed.numpy(), packed)
    assert np.array_equal(ours.scales.numpy().ravel(), scales)
    if ours.zero_points is not None:
        assert np.array_equal(ours.zero_points.numpy().ravel(), zero_points)


@settings(max_examples=60)
@given(
    form=st.sampled_from(FORMS), rows=st.integers(1, 5), columns=st.integers(1, 200), seed=st.integers(0, 99),
    magnitude=st.sampled_from([1e-20, 1e-4, 1.0, 1e4]),
)  # fmt: skip
def test_rounding_stays_within_half_a_step(
    form: BlockWeights, rows: int, columns: int, seed: int, magnitude: float
) -> None:
    values = weight(rows, columns, seed) * magnitude
    quantized = quantize_rows(values, form)
    back = dequantize_rows(quantized, form, columns)
    assert back.shape == values.shape
    steps = quantized.scales.abs().repeat_interleave(form.block, dim=1)[:, :columns]
    # Symmetric: a value opposite to the extreme one, and as large, is one step beyond the last integer.
    allowed = 1.001 if form.symmetric else 0.501
    assert bool(((back - values).abs() <= steps * allowed + 1e-30).all())


@pytest.mark.parametrize("form", [*FORMS, ChannelWeights()], ids=str)
def test_zeros_stay_zeros(form: BlockWeights | ChannelWeights) -> None:
    assert torch.equal(decode(form, torch.zeros(3, 64)), torch.zeros(3, 64))


@pytest.mark.parametrize("columns", [64, 72])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_operator_reads_them_as_we_do(form: BlockWeights, columns: int) -> None:
    """``MatMulNBits`` in full precision against a product with the dequantized weight; and a control."""
    rows = 24
    values = weight(rows, columns)
    quantized = quantize_rows(values, form)
    x = np.random.default_rng(0).standard_normal((3, columns)).astype(np.float32)
    parts = {"B": quantized.packed.numpy(), "scales": quantized.scales.numpy()}
    if quantized.zero_points is not None:
        parts["zero_points"] = quantized.zero_points.numpy()
    node = helper.make_node(
        "MatMulNBits", ["x", *parts], ["y"], domain="com.microsoft", K=columns, N=rows, bits=form.bits,
        block_size=form.block, accuracy_level=0,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "one product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, columns])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, rows])],
        [numpy_helper.from_array(array, name) for name, array in parts.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x})
    expected = x @ decode(form, values).numpy().T
    assert np.abs(found - expected).max() <= 1e-4
    assert np.abs(found - x @ values.numpy().T).max() > 1e-3  # the control: without rounding it is another product


# -- programs ------------------------------------------------------------------------------------------


def own_products() -> list[str]:
    """Recipes whose products are ONNX Runtime's own operators; the others: tests/calibration/test_quantized.py."""
    known = map(recipes.load, recipes.names())
    return [recipe.name for recipe in known if recipe.layers is not None and recipe.needs == "nothing"]


@pytest.mark.parametrize("name", own_products())
@pytest.mark.parametrize("source", ["chatglm2", "glm4_hf", "glm", "chatglm", "demo"])
def test_programs_compute_with_the_recipes_weights(name: str, source: str, tmp_path: Path) -> None:
    """Against PyTorch with the same rounding; operators as the recipe says, each linear layer's product once."""
    recipe = recipes.load(name)
    folder = "demo" if source == "demo" else Golden(source).folder
    program = api.export(folder, tmp_path / "out", dialect="ort", recipe=name)
    report = api.check(program, folder)
    assert report.passed
    assert report.recipe == program.recipe == name
    counts = Counter(node.op_type for node in ir.load(program.model_path).graph.all_nodes())
    products, layers = 4 * program.config.num_layers + 1, 4 * program.config.num_layers
    operator = "DynamicQuantizeMatMul" if isinstance(recipe.layers, ChannelWeights) else "MatMulNBits"
    assert counts[operator] == products
    assert counts["If"] == (layers if recipe.prompt else 0)
    assert counts["GatherBlockQuantized"] == 1
    assert not counts["MatMul"]


@pytest.mark.parametrize("form", [FORMS[1], FORMS[8]], ids=str)
@pytest.mark.parametrize("source", ["glm_hf", "chatglm", "glm4_moe"])
def test_without_rounded_activations_nothing_differs(
    form: BlockWeights, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accuracy_level 0 holds float32's own bound, so packing, scales and biases are exact; a control is not."""
    exact = replace(form, accuracy_level=0)
    recipe = Recipe(
        name="exact", summary="", layers=exact, head=exact,  dtypes=frozenset({"float32"}),
        tolerance=0.0,
    )  # fmt: skip
    monkeypatch.setattr(recipes, "load", lambda _: recipe)
    folder = Golden(source).folder
    program = api.export(folder, tmp_path / "out", dialect="ort", recipe="exact")
    assert needed(program, folder) <= TOLERANCES["float32"]
    monkeypatch.setattr(recipes, "load", lambda _: replace(recipe, head=None, embedding=None))
    assert needed(program, folder) > TOLERANCES["float32"]


def needed(program: OnnxProgram, folder: Path) -> float:
    return max(output.required_tolerance for output in api.check(program, folder).parity.outputs)


def test_weights_shrink(tmp_path: Path) -> None:
    sizes = {
        name: api.export("demo", tmp_path / str(name), dialect="ort", recipe=name).manifest["sizes"]["model.onnx.data"]
        for name in (None, "int8-weights", "int4-weights")
    }
    assert sizes["int4-weights"] < sizes["int8-weights"] < sizes[None] / 1.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "int8-dynamic"}, r"recipe int8-dynamic needs --dialect ort; found dialect onnx"),
        (
            {"recipe": "int8-dynamic", "dialect": "ort", "dtype": "float16"},
            r"needs --dtype float32; found dtype float16",
        ),
        (
            {"recipe": "int3", "dialect": "ort"},
            r"recipe 'int3' is unknown; known recipes: fp8, int4-",
        ),
    ],
)
def test_recipes_that_do_not_fit_are_refused(options: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        api.export("demo", tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_half_precision_program_with_quantized_weights(tmp_path: Path) -> None:
    program = api.export("demo", tmp_path / "out", dialect="ort", recipe="int8-weights", dtype="float16")
    report = api.check(program, "demo")
    assert report.passed
    # The dtype's rounding shows in every case, and no more than that.
    assert 1e-5 < report.usual < 0.03
    scales = [t for t in onnx.load(str(program.model_path), load_external_data=False).graph.initializer
              if t.name.endswith(".scales")]  # fmt: skip
    assert {tensor.data_type for tensor in scales} == {onnx.TensorProto.FLOAT16}
