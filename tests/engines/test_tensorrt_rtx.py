"""Programs in TensorRT-RTX's own parser and builder: what the dialect promises is what TensorRT finds.

Nothing is run: that needs a GPU. What can be had without one is the network TensorRT made, and whether it builds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto

from glm_export import api
from glm_export.artifacts.program import WEIGHTS, OnnxProgram
from glm_export.deployment import build as deployment
from glm_export.errors import EnvironmentMissingError, InputError
from glm_export.exporter import export as exporter
from glm_export.graphs import dialects
from glm_export.spec.optimization_profile import DECODE, PREFILL
from glm_export.spec.signature import past_names, present_names
from tests.helpers import rtx
from tests.helpers.golden_data import CAUSAL, PREFIX, Golden
from tests.helpers.tiny import tiny_values, write_checkpoint

rtx.require_installed()

LENGTH = 128
SMALLEST_FUSED_HEAD = 16
LAYERS = {
    "KV_CACHE_UPDATE": "TensorScatter", "ROTARY_EMBEDDING": "RotaryEmbedding",
    "ATTENTION_INPUT": "Attention", "ATTENTION_OUTPUT": "Attention",
}  # fmt: skip
"""TensorRT's layers -> the dialect's operators; attention is two layers, where it begins and where it ends."""
Export = Callable[..., OnnxProgram]


@pytest.fixture(scope="module")
def exported_for(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """A golden checkpoint or an embedded model in a dialect and dtype, made once."""
    made: dict[tuple[str, str, str], OnnxProgram] = {}
    root = tmp_path_factory.mktemp("rtx")

    def export(name: str, dialect: str = "tensorrt", dtype: str = "float16") -> OnnxProgram:
        key = (name, dialect, dtype)
        if key not in made:
            checkpoint = api.open_checkpoint(Golden(name).folder if name in (*CAUSAL, *PREFIX) else name)
            length = min(LENGTH, checkpoint.config.max_positions) if dialect == "tensorrt" else None
            made[key] = exporter.export(
                checkpoint, root / "-".join(key), dialect=dialect, dtype=dtype, max_length=length,
                logits="last" if not checkpoint.config.prefix_mask else None,
            )  # fmt: skip
        return made[key]

    return export


@pytest.mark.parametrize("name", [*CAUSAL, *PREFIX, "demo", "demo-glm"])
def test_every_family_becomes_what_the_dialect_promises(name: str, exported_for: Export, tmp_path: Path) -> None:
    """An engine of two profiles, prefill and decode; attention in one fused kernel wherever the head size has one."""
    program = exported_for(name)
    config, promised = program.config, dialects.load("tensorrt").expected_counts(program.config)
    with rtx.no_gpu():
        engine = deployment.build(program.folder, tmp_path / "engine", runtime=rtx.NAME, max_batch=2, prefill_batch=2)
    counts = engine.manifest["network_layers"]
    assert {kind: counts.get(kind, 0) for kind in LAYERS} == {
        kind: promised[operator] for kind, operator in LAYERS.items()
    }
    assert (counts["ATTENTION_INPUT"], counts["KV_CACHE_UPDATE"]) == (config.num_layers, 2 * config.num_layers)
    assert engine.manifest["attention_decomposed"] == (config.head_dim < SMALLEST_FUSED_HEAD)
    routers, seconds = (
        sum(node.op_type == "MatMul" and node.name.endswith(ending) for node in graph_of(program).node)
        for ending in (".router/MatMul", "/MatMul_1")
    )
    # Routers choose in float32; the second product of experts bears a number, and is not counted.
    expected = {"float16": promised["MatMul"] - routers - seconds} | ({"float32": routers} if routers else {})
    assert engine.manifest["engine_layers"]["products"] == {PREFILL: expected, DECODE: expected}
    assert [profile.name for profile in engine.profiles] == [DECODE, PREFILL]


def graph_of(program: OnnxProgram) -> onnx.GraphProto:
    return onnx.load(str(program.model_path), load_external_data=False).graph


@pytest.mark.parametrize("name", ["chatglm2", "glm4_moe", "chatglm", "glm"])
def test_layers_say_what_the_model_says(name: str, exported_for: Export) -> None:
    """Pairs and width of the rotation, caches from input to output, an explicit mask and nothing causal besides it."""
    program = exported_for(name)
    network, config = rtx.parse(program.model_path), program.config
    for layer in rtx.layers(network, "ROTARY_EMBEDDING"):
        assert layer.interleaved == config.rotary.interleaved
        assert layer.rotary_embedding_dim == config.rotary.axes * config.rotary.dim
    updates = {(layer.get_input(0).name, layer.get_output(0).name) for layer in rtx.layers(network, "KV_CACHE_UPDATE")}
    every = [pair for i in range(config.num_layers) for pair in zip(past_names(i), present_names(i), strict=True)]
    assert updates == set(every)
    columns = program.signature.input(past_names(0)[0]).dims[2]
    for layer in rtx.layers(network, "ATTENTION_INPUT"):
        assert layer.attention.causal_kind.name == "NONE"
        assert layer.attention.mask.dtype.name == "BOOL"
        # The shared heads of the cache are read as they are.
        assert tuple(layer.get_input(2).shape) == (-1, config.kv_heads, columns, config.head_dim)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("heads", "groups", "size"), [(32, 2, 128), (16, 16, 64)])
def test_released_head_sizes_have_fused_attention(
    heads: int, groups: int, size: int, dtype: str, tmp_path: Path
) -> None:
    """GLM-4-9B's and GLM-large's."""
    sizes = {"num_attention_heads": heads, "multi_query_group_num": groups, "kv_channels": size}
    checkpoint = api.open_checkpoint(write_checkpoint(tmp_path / "checkpoint", tiny_values("chatglm2", **sizes)))
    program = exporter.export(checkpoint, tmp_path / "out", dialect="tensorrt", dtype=dtype, max_length=LENGTH)
    built = rtx.build_program(program)
    assert not built.record.decomposed
    assert built.size > 0


@pytest.mark.parametrize("target", ["7.5", "8.0", "8.6", "8.9", "12.0"])
def test_builds_for_other_gpus(target: str, exported_for: Export) -> None:
    program = exported_for("demo")
    assert rtx.build_program(program, target=target).size > 0


@pytest.mark.parametrize("name", ["chatglm2", "glm4_moe", "chatglm", "glm"])
def test_portable_builds_too(name: str, exported_for: Export) -> None:
    """From primitives alone, with a cache that grows from nothing."""
    program = exported_for(name, "portable")
    built = rtx.build_program(program)
    assert not set(LAYERS) & set(built.network)
    assert built.size > 0


# -- what TensorRT refuses, and why the dialect is as it is --------------------------------------------


def test_control_attention_with_a_cache_of_its_own_is_refused(exported_for: Export) -> None:
    with pytest.raises(InputError, match="only supports Attention nodes with one output"):
        rtx.parse(exported_for("chatglm2", "onnx").model_path)


@pytest.mark.parametrize(("name", "dtype"), [("chatglm2", "float32"), ("chatglm2_32k", "float16")])
def test_attention_without_a_fused_kernel_must_be_decomposable(name: str, dtype: str, exported_for: Export) -> None:
    """In float32, and for heads of 8 channels."""
    program = exported_for(name, dtype=dtype)
    built = rtx.build_program(program)
    assert built.record.decomposed
    assert "not supported by a dedicated kernel" in built.log
    with rtx.without_leave_to_decompose(), pytest.raises(EnvironmentMissingError, match="by a dedicated kernel"):
        rtx.build_program(program)


def test_why_the_mask_says_it_all(exported_for: Export, tmp_path: Path) -> None:
    """What the standard offers instead: lengths that TensorRT reads past, and causality from the wrong corner.

    If this fails, TensorRT has learnt something, and ``docs/dialect-tensorrt.md`` should say so.
    """

    def say_it_otherwise(graph: onnx.GraphProto) -> None:
        graph.input.append(onnx.helper.make_tensor_value_info("lengths", TensorProto.INT64, ["batch_size"]))
        for node in graph.node:
            if node.op_type == "Attention":
                del node.input[3:]
                node.input.extend(["", "", "", "lengths"])
                node.attribute.append(onnx.helper.make_attribute("is_causal", 1))

    program = rtx.changed(exported_for("chatglm2"), tmp_path / "control", say_it_otherwise)
    layers = rtx.layers(rtx.parse(program.model_path), "ATTENTION_INPUT")
    assert len(layers) == program.config.num_layers
    for layer in layers:
        assert layer.attention.causal_kind.name == "UPPER_LEFT"
        assert layer.attention.mask is None
        assert layer.attention.key_value_lengths is None


def test_why_halves_are_an_axis_of_their_own(tmp_path: Path) -> None:
    """Both profiles read one weight of a gate; split as channels, this shape's lies twice in the plan (as 6 B's)."""
    sizes = {"hidden_size": 512, "num_attention_heads": 4, "kv_channels": 128, "ffn_hidden_size": 4096, "num_layers": 1}
    length = 2048  # of prompts as `build` reads them: 512 tokens of one row at once
    checkpoint = api.open_checkpoint(
        write_checkpoint(tmp_path / "checkpoint", tiny_values("chatglm2", seq_length=length, **sizes))
    )
    made = exporter.export(checkpoint, tmp_path / "out", dialect="tensorrt", dtype="float16", max_length=length)
    weights = made.manifest["sizes"][WEIGHTS]
    assert rtx.build_program(made, prefill_batch=1).record.weights < 1.1 * weights
    control = rtx.changed(made, tmp_path / "control", rtx.halves_of_channels)
    assert rtx.build_program(control, prefill_batch=1).record.weights > 1.5 * weights


def copied_caches(graph: onnx.GraphProto) -> None:
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        if node.op_type == "TensorScatter":
            wide, back = f"{node.name}/wide", f"{node.name}/back"
            graph.node.append(onnx.helper.make_node("Cast", [node.input[0]], [wide], to=TensorProto.FLOAT))
            graph.node.append(onnx.helper.make_node("Cast", [wide], [back], to=TensorProto.FLOAT16))
            node.input[0] = back
        graph.node.append(node)


def kept_caches(graph: onnx.GraphProto) -> None:
    del graph.output[1:]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (copied_caches, "The cache tensor must be a network input"),
        (kept_caches, "The output tensor must be a network output"),
    ],
)
def test_control_a_cache_that_is_not_both_input_and_output_is_refused(
    change: Callable[[onnx.GraphProto], None], reason: str, exported_for: Export, tmp_path: Path
) -> None:
    program = rtx.changed(exported_for("chatglm2"), tmp_path / "control", change)
    with pytest.raises(EnvironmentMissingError, match=reason):
        rtx.build_program(program)
