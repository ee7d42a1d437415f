"""What an engine's layers are read from: lines of the builder's log, and JSON of TensorRT's inspector, old and new."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from glm_export import api
from glm_export.artifacts.engine import PLAN, load_engine
from glm_export.deployment import build as deployment
from glm_export.engines import builder
from glm_export.engines.layers import (
    EngineLayer,
    LayerTensor,
    Promises,
    layers_of_inspector,
    layers_of_log,
    products_of,
    summarize,
)  # fmt: skip
from tests.helpers import rtx
from tests.terminal.test_cli import run

QKV, DENSE, HEAD = "layers.0.attention.qkv/MatMul", "layers.0.attention.dense/MatMul", "head/MatMul"
PROFILES = ("prefill", "decode")


# -- the builder's log ---------------------------------------------------------------------------------


def in_log(*tensors: tuple[str, str]) -> str:
    """Tensors as the log writes them: dims and dtype."""
    written = (
        f"{{ Name: __mye{number}_dconst, Dimensions: [{dims}], Strides: [1,1], StrideOrder: [1,0], "
        f"Datatype: {dtype}, Format: (Linear) Row major linear format }}"
        for number, (dims, dtype) in enumerate(tensors)
    )
    return f"[ {', '.join(written)}]" if tensors else "[]"


def line(
    name: str, kind: str, inputs: list[tuple[str, str]], constants: list[tuple[str, str]], onnx: tuple[str, ...]
) -> str:
    metadata = "".join(f"[ONNX Layer: {node}]" for node in onnx)
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: {in_log(*inputs)}, Constants: {in_log(*constants)}, "
        f"Outputs: {in_log(('1,-1,320', 'Half'))}, TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: {metadata}"
    )


SCALAR = ("1", "Float")
LOG = "\n".join([
    "Layers:",
    line("__mye11982_0_myl0_0", "shape_call", [], [], ()),
    line("__myl_RounCast_myl0_2", "kgen", [("1,-1,192", "Half")], [("1,1,192", "Half")], (f"{QKV}/QuantizeLinear_1",)),
    line(f"{QKV}/MatMul_4_myl0_3", "gemm", [("1,-1,192", "Int8")], [("1,192,320", "Int8"), SCALAR, SCALAR],
         (f"{QKV}/MatMul_4", f"{QKV}/DequantizeLinear_2")),
    line("__myl_MulAdd_myl0_4", "kgen", [("1,-1,320", "Half")], [("1,320", "Half")],
         (f"{QKV}/MatMul_4", f"{QKV}/DequantizeLinear_2", "layers.0.attention.qkv/Add")),
    line("__myl_CastMulCast_myl0_58", "kgen", [], [("1,192,2816", "Int8")], (f"{HEAD}/DequantizeLinear_1",)),
    line(f"{HEAD}/MatMul_2_myl0_59", "gemm", [("1,1,192", "Half"), ("1,192,2816", "Half")], [SCALAR, SCALAR],
         (f"{HEAD}/MatMul_2",)),
    line("__myl_ReplCastMulCastFc_myl1_12", "runtime_fusion", [("-1,512", "BFloat16")],
         [("8,192", "BFloat16"), ("512,192", "Int4")], (f"{QKV}/DequantizeLinear_1", f"{QKV}/MatMul_2")),
    line(f"{HEAD} [profile 1]_myl1_13", "gemm", [("-1,192", "Float")], [("192,2816", "Float")], (HEAD,)),
    "Name: no layer at all",
    "VERBOSE: Name: nor this, LayerType: gemm, Inputs: []",
])  # fmt: skip


def test_layers_of_a_log() -> None:
    layers = layers_of_log(LOG)
    assert [layer.kind for layer in layers] == [
        "shape_call", "kgen", "gemm", "kgen", "kgen", "gemm", "runtime_fusion", "gemm",
    ]  # fmt: skip
    assert [layer.profile for layer in layers] == [0, 0, 0, 0, 0, 0, 1, 1]
    shape_call, _, product, *_ = layers
    assert shape_call == EngineLayer(
        name="__mye11982_0_myl0_0", kind="shape_call", profile=0, inputs=(), constants=(), onnx=()
    )
    assert product == EngineLayer(
        name=f"{QKV}/MatMul_4_myl0_3", kind="gemm", profile=0, inputs=(LayerTensor(dtype="int8", count=192),),
        constants=(LayerTensor(dtype="int8", count=192 * 320), *[LayerTensor(dtype="float32")] * 2),
        onnx=(f"{QKV}/MatMul_4", f"{QKV}/DequantizeLinear_2"),
    )  # fmt: skip


def test_a_product_is_computed_where_its_weight_is() -> None:
    """Not where its input is rounded, nor where what it puts out is scaled and added to."""
    layers = layers_of_log(LOG)
    prefill, decode = (products_of(layers, profile) for profile in range(2))
    assert {product: layer.precision for product, layer in prefill.items()} == {QKV: "int8", HEAD: "float16"}
    assert prefill[QKV].kind == "gemm"
    assert {product: layer.precision for product, layer in decode.items()} == {QKV: "int4 weights", HEAD: "float32"}
    assert products_of(layers, 2) == {}
    # In any order.
    assert products_of(layers[::-1], 0) == prefill


def test_of_two_layers_without_a_weight_the_kernel_that_multiplies_is_taken() -> None:
    pointwise = line("a_myl0_1", "kgen", [("-1,320", "Float")], [SCALAR], (DENSE,))
    product = line("b_myl0_2", "gemm", [("-1,320", "Half"), ("320,192", "Half")], [SCALAR], (DENSE,))
    for text in (f"{pointwise}\n{product}", f"{product}\n{pointwise}"):
        assert products_of(layers_of_log(text), 0)[DENSE].precision == "float16"


@pytest.mark.parametrize(
    ("node", "product"),
    [
        (QKV, QKV), (f"{QKV}/MatMul_4", QKV), (f"{QKV}/MatMul", QKV), (f"{QKV}/QuantizeLinear_1", None),
        (f"{QKV}/DequantizeLinear_2", None), ("layers.0.attention/Attention/Attention_15", None),
        ("layers.0.mlp/Mul_1", None),
    ],
)  # fmt: skip
def test_names_of_products(node: str, product: str | None) -> None:
    (layer,) = layers_of_log(line("x_myl0_1", "gemm", [], [], (node, node)))
    assert layer.products == (() if product is None else (product,))


@pytest.mark.parametrize(
    ("inputs", "constants", "precision"),
    [
        (["int8"], [("int8", 9)], "int8"), (["float8"], [("float8", 9)], "float8"),
        (["float16"], [("int8", 9)], "int8 weights"), (["bfloat16"], [("int4", 9)], "int4 weights"),
        (["float16"], [("float4", 9)], "float4 weights"), (["float16"], [("float8", 9)], "float8 weights"),
        (["int8"], [("float16", 9)], "float16"), (["float16"], [("float16", 9), ("int4", 64)], "int4 weights"),
        (["float16"], [("float16", 64), ("int8", 9)], "float16"), (["float16", "float16"], [], "float16"),
        (["float16", "float16"], [("float32", 1)], "float16"), (["int64", "bfloat16"], [], "bfloat16"),
        (["int64"], [], "unknown"), ([], [("bfloat16", 2)], "bfloat16"),
    ],
)  # fmt: skip
def test_precision_is_what_is_multiplied(inputs: list[str], constants: list[tuple[str, int]], precision: str) -> None:
    layer = EngineLayer(
        name="x", kind="gemm", profile=0, onnx=(), inputs=tuple(LayerTensor(dtype=dtype, count=5) for dtype in inputs),
        constants=tuple(LayerTensor(dtype=dtype, count=count) for dtype, count in constants),
    )  # fmt: skip
    assert layer.precision == precision


# -- the summary ---------------------------------------------------------------------------------------


def test_summary_counts_and_says_what_is_no_integer() -> None:
    """The program quantizes three products: one computes in INT8, one in float after all, one is not to be found."""
    promised = Promises(both=(QKV, HEAD, DENSE))
    summary = summarize(layers_of_log(LOG), "build log", PROFILES, promised)
    assert (summary.source, summary.layers) == ("build log", 8)
    assert summary.kinds == {"gemm": 3, "kgen": 3, "shape_call": 1, "runtime_fusion": 1}
    assert summary.products == {"prefill": {"int8": 1, "float16": 1}, "decode": {"int4 weights": 1, "float32": 1}}
    assert summary.not_integer == (
        f"{HEAD} (prefill)", f"{DENSE} (prefill)", f"{QKV} (decode)", f"{HEAD} (decode)", f"{DENSE} (decode)",
    )  # fmt: skip
    assert summarize(layers_of_log(LOG), "build log", PROFILES[:1], Promises(both=(QKV,))).not_integer == ()
    eight = LOG.replace("Half", "FP8").replace("Int8", "FP8")
    assert summarize(layers_of_log(eight), "build log", PROFILES[:1], Promises(both=(QKV,))).not_integer == ()


def test_weights_that_became_floats_are_named_and_weighed() -> None:
    """Four bits stay four in decoding, its head lies there in float; what the first head reads is no constant."""
    layers = layers_of_log(LOG)
    summary = summarize(layers, "build log", PROFILES, Promises(weights=(QKV, HEAD, DENSE)))
    assert summary.made_float == (f"{HEAD} (decode)",)
    assert summary.weights["decode"] == {
        "float32": 4 * 192 * 2816, "int4": 512 * 192 // 2, "bfloat16": 2 * 8 * 192,
    }  # fmt: skip
    assert sum(summary.weights["prefill"].values()) > 0
    assert summarize(layers, "build log", PROFILES).made_float == ()


def test_weights_kept_twice_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gates split as channels lie in each profile; so few bytes would not be told of."""
    rtx.require_installed()
    monkeypatch.setattr(builder, "FEW_BYTES", 0)
    monkeypatch.setattr(builder, "promised_products", lambda _: Promises(weights=("head/MatMul",)))
    made = api.export("demo", tmp_path / "program", dialect="tensorrt", dtype="float16", max_length=64)
    program = rtx.changed(made, tmp_path / "changed", rtx.halves_of_channels)
    with rtx.no_gpu():
        result = run("build", program.folder, "--out", tmp_path / "engine", "--runtime", rtx.NAME)
    assert result.exit_code == 0
    manifest = load_engine(tmp_path / "engine").manifest
    memory = manifest["memory"]
    program_weights = 2 * manifest["program"]["parameters"]
    assert memory["program_weights"] == pytest.approx(program_weights, rel=0.01)
    assert memory["weight_ratio"] == pytest.approx(memory["weights"] / memory["program_weights"], abs=1e-3)
    assert memory["plan"] == (tmp_path / "engine" / PLAN).stat().st_size
    assert manifest["engine_layers"]["weights"]["decode"]["float16"] == pytest.approx(program_weights, rel=0.01)
    assert f"the engine's weights are {memory['weight_ratio']:.2f} times the program's, at most 1.2" in result.stderr
    assert (
        "weights of integers in the program, of floats in the engine: head/MatMul (decode), head/MatMul (prefill)"
        in result.stderr
    )


@pytest.mark.parametrize(("held", "excess"), [(1.0, False), (1.2, False), (1.21, True), (0.5, False)])
def test_how_much_more_weighs(held: float, excess: bool) -> None:
    weights = 4 * 10**9
    memory = {"weights": int(held * weights), "program_weights": weights, "weight_ratio": held}
    assert builder.has_excess_weights(memory) == excess
    small = {name: count / 10**3 for name, count in memory.items() if name != "weight_ratio"}
    assert not builder.has_excess_weights(small | {"weight_ratio": held})


# -- the inspector -------------------------------------------------------------------------------------


def inspected(*layers: dict[str, Any]) -> list[EngineLayer]:
    return layers_of_inspector(json.dumps({"Layers": list(layers), "Bindings": ["input_ids", "logits"]}))


def test_layers_of_the_inspector_up_to_version_10() -> None:
    """The dtype ends a sentence on the format; weights that a kernel holds stand apart."""
    (layer,) = inspected({
        "Name": f"{QKV} [profile 1]", "LayerType": "CaskGemmMatrixMultiply",
        "Inputs": [{
            "Name": "a", "Location": "Device", "Dimensions": [1, -1, 192],
            "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format",
        }],
        "Outputs": [{"Name": "b", "Dimensions": [1, -1, 320], "Format/Datatype": "Row major linear FP16 format"}],
        "Weights": {"Type": "Int8", "Count": 61440}, "Bias": {"Type": "Half", "Count": 320},
        "Metadata": f"[ONNX Layer: {QKV}]",
    })  # fmt: skip
    assert layer == EngineLayer(
        name=f"{QKV} [profile 1]", kind="CaskGemmMatrixMultiply", profile=1,
        inputs=(LayerTensor(dtype="int8", count=192),), constants=(LayerTensor(dtype="int8", count=61440),),
        onnx=(QKV,),
    )  # fmt: skip
    assert products_of([layer], 1)[QKV].precision == "int8"


def test_layers_of_the_inspector_from_version_11_on() -> None:
    """As the builder's log: dtypes by themselves, weights among the constants."""
    layers = inspected(
        {
            "Name": f"{QKV}_myl0_3", "LayerType": "gemm", "Inputs": [{"Dimensions": [1, -1, 192], "Datatype": "Half"}],
            "Constants": [
                {"Dimensions": [1], "Datatype": "Float"}, {"Dimensions": [192, 320], "Datatype": "Int4"},
            ],
            "Outputs": [], "Metadata": f"[ONNX Layer: {QKV}/DequantizeLinear_1][ONNX Layer: {QKV}/MatMul_2]",
        },
        {"Name": "__mye1_0_myl0_0", "LayerType": "shape_call", "Inputs": [], "Constants": [], "Outputs": []},
    )  # fmt: skip
    assert [layer.precision for layer in layers] == ["int4 weights", "unknown"]
    assert products_of(layers, 0) == {QKV: layers[0]}


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        ("Row major linear FP16 format", "float16"), ("Row major linear FP32", "float32"),
        ("Row major linear BFloat16 format", "bfloat16"), ("Row major linear Int8 format", "int8"),
        ("Channel major FP16 format where channel % 8 == 0", "float16"), ("Row major linear FP8 format", "float8"),
        ("Half", "float16"), ("Float", "float32"), ("BFloat16", "bfloat16"), ("Int4", "int4"), ("FP4", "float4"),
        ("Int64", "int64"), ("", ""),
    ],
)  # fmt: skip
def test_names_of_dtypes(text: str, dtype: str) -> None:
    for key in ("Datatype", "Format/Datatype"):
        (layer,) = inspected({"Name": "x", "Inputs": [{"Dimensions": [2, 3], key: text}]})
        assert layer.inputs == (LayerTensor(dtype=dtype, count=6),)


def test_an_inspector_that_tells_names_only() -> None:
    """Where the engine was built without details, layers are strings."""
    assert layers_of_inspector(json.dumps({"Layers": ["a", "b"]})) == []
    assert layers_of_inspector("{}") == []


def test_products_of_equal_heads_stay_in_int8(tmp_path: Path) -> None:
    """As many heads for keys as for queries: a split of channels moved into the product, whose weight became float."""
    rtx.require_installed()
    checkpoint = api.open_checkpoint("demo-glm")
    assert checkpoint.config.kv_heads == checkpoint.config.num_heads
    corpus = api.open_corpus("poems", checkpoint, max_samples=8)
    ranges = api.calibrate(checkpoint, tmp_path / "ranges", corpus=corpus)
    engine = deployment.build(
        checkpoint, tmp_path / "engine", runtime="tensorrt-rtx", max_context=128,
        export={"recipe": "int8-static", "ranges": ranges},
    )  # fmt: skip
    found = engine.manifest["engine_layers"]
    assert found["not_integer"] == []
    assert found["products"] == {name: {"int8": 16, "float16": 1} for name in ("prefill", "decode")}
