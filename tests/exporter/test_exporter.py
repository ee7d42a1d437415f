"""Exporting: what is written, that it is written whole or not at all, and what is refused."""

from __future__ import annotations

import json
import threading
from collections import Counter, namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from glm_export import api, families
from glm_export.artifacts.manifest import MANIFEST
from glm_export.artifacts.open import Kind, kind_of
from glm_export.artifacts.program import OnnxProgram, load_program
from glm_export.checkpoints.checkpoint import open_checkpoint
from glm_export.errors import CheckpointError, EnvironmentMissingError, InputError
from glm_export.exporter import export as exporter
from glm_export.exporter.export import program_graph
from glm_export.exporter.options import resolve_options
from glm_export.exporter.plan import plan_export
from glm_export.graphs import dialects
from glm_export.graphs.invariants import InvariantError, check_invariants
from glm_export.model_folder import file_sha256
from tests.helpers.golden_data import CAUSAL, Golden
from tests.helpers.tiny import random_tensors, tiny_values, write_checkpoint

FAMILIES = families.names()


@pytest.mark.parametrize("name", CAUSAL)
def test_the_graph_is_what_the_dialect_promises(name: str, exported: Callable[[str], OnnxProgram]) -> None:
    """Two rotary embeddings, one attention, four products a layer; the checker agrees; no other operator."""
    program = exported(name)
    onnx.checker.check_model(str(program.model_path), full_check=True)
    graph = onnx.load(str(program.model_path), load_external_data=False).graph
    counts = Counter(node.op_type for node in graph.node)
    layers = program.config.num_layers
    assert counts["RotaryEmbedding"] == 2 * layers
    assert counts["Attention"] == layers
    assert counts["RMSNormalization"] == layers * (4 if name == "glm4_hf" else 2) + 1
    if name != "glm4_moe":
        assert counts["MatMul"] == 4 * layers + 1
        assert "Transpose" not in counts
        assert "Expand" not in counts  # shared heads are never repeated in memory
    assert set(counts) <= dialects.load("onnx").allowed_ops


def test_names_say_which_module_made_a_node(exported: Callable[[str], OnnxProgram]) -> None:
    graph = onnx.load(str(exported("chatglm2").model_path), load_external_data=False).graph
    names = [node.name for node in graph.node]
    assert len(set(names)) == len(names)
    for name in ("layers.0.attention/Attention", "layers.1.mlp.down/MatMul", "embedding/Gather", "mask/Or"):
        assert name in names
    raw = exported("chatglm2").model_path.read_bytes()
    assert b".py" not in raw  # no stack traces, and no paths of this machine with them


def test_folder_and_manifest(exported: Callable[[str], OnnxProgram]) -> None:
    program, source = exported("glm4_remote"), Golden("glm4_remote").folder
    names = {path.name for path in program.folder.iterdir()}
    assert names == {
        "model.onnx", "model.onnx.data", "config.json", "generation_config.json", "genai_config.json", "manifest.json",
        "tokenizer.model", "tokenizer.json", "tokenizer_config.json", "README.md",
    }  # fmt: skip
    manifest = json.loads((program.folder / MANIFEST).read_text())
    shard = "model-00001-of-00002.safetensors"
    assert manifest["source_sha256"][shard] == file_sha256(source / shard)
    assert set(manifest["source_sha256"]) == {shard, "model-00002-of-00002.safetensors", "config.json"}
    assert manifest["dialect"] == "onnx"
    # A wheel's own name may leave out the build (+cu130) that the module tells.
    assert manifest["packages"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert manifest["sizes"]["model.onnx.data"] == (program.folder / "model.onnx.data").stat().st_size
    assert manifest["parameters"] == sum(t.numel() for t in dict(open_checkpoint(source).parameters()).values())
    assert "auto_map" not in json.loads((program.folder / "tokenizer_config.json").read_text())
    assert json.loads((program.folder / "generation_config.json").read_text())["top_p"] == 0.8
    assert load_program(program.folder).signature == program.signature


@pytest.mark.parametrize(
    ("name", "stops"), [("chatglm3", [2, 358, 360]), ("glm", [230, 237]), ("glm_hf", [301, 308, 310])]
)
def test_every_stop_id_is_written(name: str, stops: list[int], exported: Callable[[str], OnnxProgram]) -> None:
    """ChatGLM3's replies end at the next role, which config.json does not say."""
    for file in ("config.json", "generation_config.json"):
        assert json.loads((exported(name).folder / file).read_text())["eos_token_id"] == stops


def test_signature_is_the_graphs(exported: Callable[[str], OnnxProgram]) -> None:
    program = exported("chatglm3")
    graph = onnx.load(str(program.model_path), load_external_data=False).graph
    for values, specs in ((graph.input, program.signature.inputs), (graph.output, program.signature.outputs)):
        found = [(v.name, tuple(d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim)) for v in values]
        assert found == [(spec.name, spec.dims) for spec in specs]
    assert found[0] == ("logits", ("batch_size", "sequence_length", 368))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_family_dtype_and_logits_kind(family: str, dtype: str, tmp_path: Path) -> None:
    """Stored weights are the checkpoint's, rounded once; the last row is all there is with ``last``."""
    folder = write_checkpoint(tmp_path / "c", tiny_values(family))
    program = api.export(folder, tmp_path / "out", dtype=dtype, logits="last")
    assert program.signature.outputs[0].dims == ("batch_size", 1, 320)
    onnx.checker.check_model(str(program.model_path), full_check=True)
    wanted = getattr(torch, dtype)
    initializers = ir.load(program.model_path).graph.initializers
    for name, tensor in open_checkpoint(folder).parameters():
        transposed = tensor.dim() >= 2 and not name.endswith("embedding.weight")
        kept = torch.float32 if "router" in name or "choice_bias" in name else wanted
        expected = (tensor.mT if transposed else tensor).to(kept).float().numpy()
        stored = initializers[name].const_value
        assert stored is not None
        np.testing.assert_array_equal(stored.numpy().astype(np.float32), expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"rmsnorm": False},
        {"multi_query_attention": False},
        {"add_bias_linear": True},
        {"add_qkv_bias": False},
        {"apply_residual_connection_post_layernorm": True},
        {"post_layer_norm": False},
    ],
)
def test_every_switch_of_the_chatglm_layout(changes: dict[str, bool], tmp_path: Path) -> None:
    """No released checkpoint sets these; the program must still follow PyTorch."""
    folder = write_checkpoint(tmp_path / "c", tiny_values("chatglm2", **changes))
    program = api.export(folder, tmp_path / "out")
    assert api.check(program, folder).passed


def test_export_reads_every_layout_alike(tmp_path: Path) -> None:
    values, hashes = tiny_values("glm4"), set()
    for index, (layout, shards) in enumerate(
        (("model.safetensors", 1), ("model.safetensors", 3), ("pytorch_model.bin", 2))
    ):
        folder = write_checkpoint(tmp_path / f"c{index}", values, layout=layout, shards=shards)
        program = api.export(folder, tmp_path / f"out{index}")
        hashes.add((file_sha256(program.folder / "model.onnx.data"), file_sha256(program.model_path)))
    assert len(hashes) == 1


# -- the contract of a dialect can fail -------------------------------------------------------------


@pytest.fixture(scope="module")
def graph_and_checks() -> tuple[ir.Model, Callable[[ir.Model], None]]:
    checkpoint = open_checkpoint(Golden("chatglm2").folder)
    plan = plan_export(checkpoint, Path.cwd(), "float32")
    target = resolve_options(checkpoint.config, dialect="onnx", dtype="float32", logits=None, max_length=None)
    model = program_graph(checkpoint.config, target, plan.stored)
    return model, lambda changed: check_invariants(changed, target.dialect, checkpoint.config, target.signature)


def _first(model: ir.Model, op_type: str) -> ir.Node:
    return next(node for node in model.graph if node.op_type == op_type)


def _plant_foreign_op(model: ir.Model) -> None:
    norm = _first(model, "RMSNormalization")
    extra = ir.node("Tanh", [norm.outputs[0]], name="extra")
    model.graph.insert_after(norm, extra)


def _plant_an_op_of_other_families(model: ir.Model) -> None:
    norm = _first(model, "RMSNormalization")
    model.graph.insert_after(norm, ir.node("Gelu", [norm.outputs[0]], name="extra"))


def _miss_an_attention(model: ir.Model) -> None:
    _first(model, "Attention").op_type = "MatMul"


def _rename_an_input(model: ir.Model) -> None:
    model.graph.inputs[0].name = "tokens"


def _leave_an_orphan(model: ir.Model) -> None:
    value = ir.Value(name="orphan", const_value=ir.tensor([1.0], name="orphan"))
    model.graph.register_initializer(value)


def _lower_the_opset(model: ir.Model) -> None:
    model.graph.opset_imports[""] = 22


@pytest.mark.parametrize(
    ("defect", "message"),
    [
        (_plant_foreign_op, "does not allow the operators Tanh"),
        (_plant_an_op_of_other_families, "expects 0 Gelu nodes, found 1"),
        (_miss_an_attention, "Attention"),
        (_rename_an_input, "tokens"),
        (_leave_an_orphan, "orphan"),
        (_lower_the_opset, "opset"),
    ],
)
def test_planted_defects_are_refused(
    graph_and_checks: tuple[ir.Model, Callable[[ir.Model], None]], defect: Callable[[ir.Model], None], message: str
) -> None:
    model, check = graph_and_checks
    check(model)
    changed = model.clone()
    defect(changed)
    with pytest.raises(InvariantError, match=message):
        check(changed)


# -- whole or not at all ----------------------------------------------------------------------------


def _leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name not in ("c", "checkpoint")]


def test_existing_folder_needs_force(tmp_path: Path) -> None:
    source = Golden("chatglm2").folder
    program = api.export(source, tmp_path / "out")
    with pytest.raises(InputError, match="--force"):
        api.export(source, tmp_path / "out", dtype="float16")
    assert load_program(program.folder).dtype == "float32"
    assert api.export(source, tmp_path / "out", dtype="float16", force=True).dtype == "float16"
    assert _leftovers(tmp_path) == ["out"]


def test_force_never_replaces_what_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(InputError):
            api.export("demo", tmp_path / "out", force=force)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert kind_of(api.export(Golden("chatglm2").folder, tmp_path / "out").folder) is Kind.PROGRAM


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value: float, tmp_path: Path) -> None:
    values = tiny_values("chatglm2")
    tensors = random_tensors(values)
    name = "transformer.encoder.layers.1.mlp.dense_h_to_4h.weight"
    tensors[name][3, 5] = value
    folder = write_checkpoint(tmp_path / "c", values, tensors)
    with pytest.raises(CheckpointError, match=f"{name} holds NaN or infinity"):
        api.export(folder, tmp_path / "out")
    assert _leftovers(tmp_path) == []


def test_weights_beyond_float16(tmp_path: Path) -> None:
    values = tiny_values("chatglm2")
    tensors = random_tensors(values)
    tensors["transformer.output_layer.weight"][0, 0] = 70000.0
    folder = write_checkpoint(tmp_path / "c", values, tensors)
    with pytest.raises(CheckpointError, match=r"output_layer.weight.*beyond float16.*bfloat16"):
        api.export(folder, tmp_path / "out", dtype="float16")
    assert api.export(folder, tmp_path / "out", dtype="bfloat16").dtype == "bfloat16"


def test_full_disk_is_refused_before_work_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(EnvironmentMissingError, match="needs 0"):
        api.export(Golden("chatglm2").folder, tmp_path / "out")
    assert _leftovers(tmp_path) == []


def test_disk_that_fills_while_writing(tmp_path: Path) -> None:
    """A file size limit stands in for the full disk: the kernel refuses the write itself."""
    import subprocess
    import sys

    script = (
        "import errno, resource, signal, sys\n"
        "from pathlib import Path\n"
        "from glm_export import api\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        f"    api.export({str(Golden('chatglm2').folder)!r}, {str(tmp_path / 'out')!r})\n"
        "except OSError as error:\n"
        "    sys.exit(0 if error.errno == errno.EFBIG else 1)\n"
        "sys.exit(2)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
    assert _leftovers(tmp_path) == []


def test_no_space_reads_as_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", refuse)
    with pytest.raises(EnvironmentMissingError, match="is full"):
        api.export(Golden("chatglm2").folder, tmp_path / "out")
    assert _leftovers(tmp_path) == []


def test_interrupt_leaves_nothing_and_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Golden("chatglm2").folder
    program = api.export(source, tmp_path / "out")
    before = threading.active_count()

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(exporter, "program_graph", interrupted)
        with pytest.raises(KeyboardInterrupt):
            api.export(source, tmp_path / "out", force=True)
    assert threading.active_count() == before
    assert _leftovers(tmp_path) == ["out"]
    assert load_program(tmp_path / "out").manifest == program.manifest  # the old one is untouched
    (tmp_path / ".out.partial").mkdir()  # what a killed run leaves behind
    assert api.export(source, tmp_path / "out", force=True).folder == tmp_path / "out"
    assert _leftovers(tmp_path) == ["out"]


@pytest.mark.parametrize("option", [{"dtype": "int8"}, {"logits": "some"}, {"dialect": "french"}])
def test_unknown_options_list_the_known(option: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="known"):
        api.export(Golden("chatglm2").folder, tmp_path / "out", **option)


def test_damaged_program_is_seen_when_loaded(tmp_path: Path) -> None:
    program = api.export(Golden("chatglm2").folder, tmp_path / "out")
    weights = program.folder / "model.onnx.data"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model\.onnx\.data should have"):
        load_program(program.folder)
    (program.folder / MANIFEST).write_text("{}")
    with pytest.raises(CheckpointError, match="format"):
        load_program(program.folder)


def test_plan_states_what_is_written(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(Golden("glm_hf").folder)
    plan = plan_export(checkpoint, tmp_path / "deep" / "out", "float16")
    program = api.export(checkpoint, tmp_path / "deep" / "out", dtype="float16")
    assert program.manifest["sizes"]["model.onnx.data"] == plan.stored[-1].offset + plan.stored[-1].length
    assert sum(program.manifest["sizes"].values()) <= plan.output_bytes + 20_000


def test_tables_follow_the_config(tmp_path: Path) -> None:
    """ChatGLM2-6B-32k's interpolation and GLM-4's base are in the file, not left to a reader."""
    checkpoint = open_checkpoint(Golden("chatglm2_32k").folder)
    program = api.export(checkpoint, tmp_path / "out")
    value = ir.load(program.model_path).graph.initializers["cos"].const_value
    assert value is not None
    official = Golden("chatglm2_32k")["rope.cache_first64"][..., 0]
    np.testing.assert_allclose(value.numpy()[:64], official, atol=1e-7)
    plain = replace(checkpoint.config.rotary, position_scale=1.0)
    assert plain != checkpoint.config.rotary
