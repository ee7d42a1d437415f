"""Programs in TensorRT-RTX's own parser and builder: what the dialect promises is what TensorRT finds.

Nothing is run: that needs a GPU. What can be had without one is the network TensorRT made, and whether it builds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto

from glm_export import api, exporter
from glm_export.artifacts import OnnxProgram
from glm_export.graphs import dialects
from glm_export.signature import past_names, present_names
from tests.golden_data import CAUSAL, PREFIX, Golden
from tests.tiny import tiny_values, write_checkpoint

pytest.importorskip(
    "tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed: pip install 'glm-export[rtx]' (Linux, x86-64)"
)

from tests.rtx import DECODE, PREFILL, Network, RefusedError

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
def test_every_family_parses_into_what_the_dialect_promises_and_builds(name: str, exported_for: Export) -> None:
    """Two profiles, prefill and decode; attention in one fused kernel wherever the head size has one."""
    program = exported_for(name)
    network, promised = Network(program.model_path), dialects.load("tensorrt").expected_counts(program.config)
    counts = network.counts()
    assert {kind: counts[kind] for kind in LAYERS} == {kind: promised[operator] for kind, operator in LAYERS.items()}
    assert counts["ATTENTION_INPUT"] == program.config.num_layers
    if program.config.head_dim < SMALLEST_FUSED_HEAD:
        network.allow_decomposition()
    assert network.build(program.signature, (PREFILL, DECODE)).size > 0


@pytest.mark.parametrize("name", ["chatglm2", "glm4_moe", "chatglm", "glm"])
def test_layers_say_what_the_model_says(name: str, exported_for: Export) -> None:
    """Pairs and width of the rotation, caches from input to output, an explicit mask and nothing causal besides it."""
    program = exported_for(name)
    network, config = Network(program.model_path), program.config
    for layer in network.layers("ROTARY_EMBEDDING"):
        assert layer.interleaved == config.rotary.interleaved
        assert layer.rotary_embedding_dim == config.rotary.axes * config.rotary.dim
    updates = {(layer.get_input(0).name, layer.get_output(0).name) for layer in network.layers("KV_CACHE_UPDATE")}
    every = [pair for i in range(config.num_layers) for pair in zip(past_names(i), present_names(i), strict=True)]
    assert updates == set(every)
    columns = program.signature.input(past_names(0)[0]).dims[2]
    for layer in network.layers("ATTENTION_INPUT"):
        assert layer.attention.causal_kind.name == "NONE"
        assert layer.attention.mask.dtype.name == "BOOL"
        # The shared heads of the cache are read as they are.
        assert tuple(layer.get_input(2).shape) == (-1, config.kv_heads, columns, config.head_dim)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("heads", "groups", "size"), [(32, 2, 128), (16, 16, 64)])
def test_released_head_sizes_have_fused_attention(
    heads: int, groups: int, size: int, dtype: str, tmp_path: Path
) -> None:
    """GLM-4-9B's and GLM-large's; without leave to decompose, building succeeds with a fused kernel only."""
    sizes = {"num_attention_heads": heads, "multi_query_group_num": groups, "kv_channels": size}
    checkpoint = api.open_checkpoint(write_checkpoint(tmp_path / "checkpoint", tiny_values("chatglm2", **sizes)))
    program = exporter.export(checkpoint, tmp_path / "out", dialect="tensorrt", dtype=dtype, max_length=LENGTH)
    assert Network(program.model_path).build(program.signature).size > 0


@pytest.mark.parametrize("target", ["SM75", "SM80", "SM86", "SM89", "SM120"])
def test_builds_for_other_gpus(target: str, exported_for: Export) -> None:
    program = exported_for("demo")
    assert Network(program.model_path).build(program.signature, target=target).size > 0


@pytest.mark.parametrize("name", ["chatglm2", "glm4_moe", "chatglm", "glm"])
def test_portable_builds_too(name: str, exported_for: Export) -> None:
    """From primitives alone, with a cache that grows from nothing."""
    program = exported_for(name, "portable")
    network = Network(program.model_path)
    assert not set(LAYERS) & set(network.counts())
    assert network.build(program.signature).size > 0


# -- what TensorRT refuses, and why the dialect is as it is --------------------------------------------


def test_control_attention_with_a_cache_of_its_own_is_refused(exported_for: Export) -> None:
    with pytest.raises(RefusedError, match="only supports Attention nodes with one output"):
        Network(exported_for("chatglm2", "onnx").model_path)


@pytest.mark.parametrize(("name", "dtype"), [("chatglm2", "float32"), ("chatglm2_32k", "float16")])
def test_attention_without_a_fused_kernel_must_be_decomposable(name: str, dtype: str, exported_for: Export) -> None:
    """In float32, and for heads of 8 channels."""
    program = exported_for(name, dtype=dtype)
    with pytest.raises(RefusedError, match="not supported by a dedicated kernel"):
        Network(program.model_path).build(program.signature)
    network = Network(program.model_path)
    network.allow_decomposition()
    assert network.build(program.signature).size > 0


def test_why_the_mask_says_it_all(exported_for: Export) -> None:
    """What the standard offers instead: lengths that TensorRT reads past, and causality from the wrong corner.

    If this fails, TensorRT has learnt something, and ``docs/dialect-tensorrt.md`` should say so.
    """
    program = exported_for("chatglm2")
    model = onnx.load(str(program.model_path), load_external_data=False)
    model.graph.input.append(onnx.helper.make_tensor_value_info("lengths", TensorProto.INT64, ["batch_size"]))
    for node in model.graph.node:
        if node.op_type == "Attention":
            del node.input[3:]
            node.input.extend(["", "", "", "lengths"])
            node.attribute.append(onnx.helper.make_attribute("is_causal", 1))
    path = program.folder / "lengths.onnx"
    onnx.save(model, str(path))
    layers = Network(path).layers("ATTENTION_INPUT")
    assert len(layers) == program.config.num_layers
    for layer in layers:
        assert layer.attention.causal_kind.name == "UPPER_LEFT"
        assert layer.attention.mask is None
        assert layer.attention.key_value_lengths is None


def test_control_a_cache_that_is_no_input_is_refused(exported_for: Export) -> None:
    program = exported_for("chatglm2")
    model = onnx.load(str(program.model_path), load_external_data=False)
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        if node.op_type == "TensorScatter":
            wide, back = f"{node.name}/wide", f"{node.name}/back"
            model.graph.node.append(onnx.helper.make_node("Cast", [node.input[0]], [wide], to=TensorProto.FLOAT))
            model.graph.node.append(onnx.helper.make_node("Cast", [wide], [back], to=TensorProto.FLOAT16))
            node.input[0] = back
        model.graph.node.append(node)
    with pytest.raises(RefusedError, match="The cache tensor must be a network input"):
        build_changed(program, model)


def test_control_a_cache_that_is_no_output_is_refused(exported_for: Export) -> None:
    program = exported_for("chatglm2")
    model = onnx.load(str(program.model_path), load_external_data=False)
    del model.graph.output[1:]
    with pytest.raises(RefusedError, match="The output tensor must be a network output"):
        build_changed(program, model)


def build_changed(program: OnnxProgram, model: onnx.ModelProto) -> None:
    """Build a changed graph beside the program's own weights."""
    path = program.folder / "control.onnx"
    onnx.save(model, str(path))
    try:
        Network(path).build(program.signature)
    finally:
        path.unlink()
