"""Engines built in full by TensorRT-RTX: what becomes of each recipe, what a folder holds, and what is refused.

Every family is built in ``test_tensorrt_rtx.py``. Nothing is run: that needs a GPU. Where there is one it is hidden, so
that layers are read from the builder's log.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from glm_export import api
from glm_export.artifacts.engine import BUILD_LOG, PLAN, BuiltOn, Engine, load_engine
from glm_export.artifacts.manifest import ENGINE_MANIFEST, MANIFEST
from glm_export.artifacts.program import MODEL, WEIGHTS, OnnxProgram
from glm_export.calibration.quantization import QUANTIZATION
from glm_export.deployment import build as deployment
from glm_export.engines import builder, vendor
from glm_export.engines.layers import Promises
from glm_export.errors import EnvironmentMissingError, InputError
from glm_export.exporter import export as exporter
from glm_export.graphs import dialects
from glm_export.spec.optimization_profile import DECODE, PREFILL, Limits
from glm_export.tokenizers import load_tokenizer
from tests.helpers import rtx
from tests.helpers.walked import one_thread, poems, tracing_once
from tests.terminal.test_cli import fails, run

rtx.require_installed()

LENGTH, LAYERS = 128, 4
RTX = ("--runtime", rtx.NAME)
Make = Callable[..., OnnxProgram]


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    with one_thread(), rtx.no_gpu(), tracing_once():
        yield


@pytest.fixture(scope="module")
def exported_with(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """The embedded model's program of a recipe and dtype, made once."""
    root, made = tmp_path_factory.mktemp("programs"), dict[tuple[str | None, str], OnnxProgram]()
    checkpoint = api.open_checkpoint("demo")
    ranges = api.calibrate(checkpoint, root / "ranges", corpus=poems(checkpoint, 4))

    def export(recipe: str | None = None, dtype: str = "float16") -> OnnxProgram:
        if (recipe, dtype) not in made:
            made[recipe, dtype] = api.export(
                checkpoint, root / f"{recipe}-{dtype}", dialect="tensorrt", dtype=dtype, max_length=LENGTH,
                recipe=recipe, ranges=ranges if recipe else None,
            )  # fmt: skip
        return made[recipe, dtype]

    return export


@pytest.fixture(scope="module")
def program(exported_with: Make) -> OnnxProgram:
    return exported_with()


@pytest.fixture(scope="module")
def engine(program: OnnxProgram, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Of the float16 program; for reading only."""
    return built(program.folder, tmp_path_factory.mktemp("engine") / "demo")


def built(source: Path, out: Path, **options: Any) -> Engine:
    return deployment.build(source, out, runtime=rtx.NAME, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def node_of(graph: onnx.GraphProto, operator: str) -> onnx.NodeProto:
    return next(node for node in graph.node if node.op_type == operator)


# -- what becomes of a program -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "dtype", "products", "rounded"),
    [
        (None, "float16", {"float16": 17}, 0), (None, "bfloat16", {"bfloat16": 17}, 0),
        ("int8-static", "float16", {"int8": 16, "float16": 1}, 16),
        ("int4-weights", "float16", {"int4 weights": 16}, 0),
    ],
)  # fmt: skip
def test_products_compute_in_what_the_recipe_says(
    recipe: str | None, dtype: str, products: dict[str, int], rounded: int, exported_with: Make, tmp_path: Path
) -> None:
    """Four products a layer, and the head, which has 8-bit weights beside INT4 and is made float as TensorRT likes."""
    source = exported_with(recipe, dtype)
    engine = built(source.folder, tmp_path / "engine")
    manifest, network = engine.manifest, engine.manifest["network_layers"]
    promised = dialects.load("tensorrt").expected_counts(source.config)
    assert network["KV_CACHE_UPDATE"] == 2 * LAYERS == promised["TensorScatter"]
    assert network["ROTARY_EMBEDDING"] == promised["RotaryEmbedding"] == 2 * LAYERS
    assert network["ATTENTION_INPUT"] == LAYERS
    assert network.get("QUANTIZE", 0) == len(builder.promised_products(source.model_path).both) == rounded
    layers = manifest["engine_layers"]
    assert layers["products"].keys() == {PREFILL, DECODE}
    for found in layers["products"].values():
        assert found.items() >= products.items()
        assert sum(found.values()) == 17
    assert (layers["source"], layers["not_integer"], layers["made_float"]) == ("build log", [], [])
    assert layers["layers"] == sum(layers["kinds"].values()) > 100
    assert manifest["attention_decomposed"] is False
    assert engine.program.recipe == recipe
    # The recipe's numbers come along.
    assert (engine.folder / QUANTIZATION).is_file() == (source.folder / QUANTIZATION).is_file() == bool(rounded)


def test_control_a_product_that_is_not_rounded_shows(exported_with: Make, tmp_path: Path) -> None:
    """One product of W8A8 reads its input as it is: one rounding and one INT8 product fewer."""
    name = "layers.2.mlp.down/MatMul/MatMul_4"

    def skip_rounding(graph: onnx.GraphProto) -> None:
        made_by = {output: node for node in graph.node for output in node.output}
        product = next(node for node in graph.node if node.name == name)
        widened = made_by[product.input[0]]
        narrowed = made_by[widened.input[0]]
        product.input[0] = narrowed.input[0]
        for node in (widened, narrowed):
            graph.node.remove(node)

    program = rtx.changed(exported_with("int8-static"), tmp_path / "program", skip_rounding)
    manifest = built(program.folder, tmp_path / "engine").manifest
    assert manifest["network_layers"]["QUANTIZE"] == 15
    for found in manifest["engine_layers"]["products"].values():
        assert found["int8"] == 15
        assert sum(found.values()) == 17
    assert len(builder.promised_products(program.model_path).both) == 15


def test_layers_that_should_be_integers_are_named(
    exported_with: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were the head quantized in the program, the engine would have missed it."""
    monkeypatch.setattr(builder, "promised_products", lambda _: Promises(both=("head/MatMul",)))
    out = tmp_path / "engine"
    result = run("build", exported_with("int8-static").folder, "--out", out, *RTX)
    assert load_engine(out).manifest["engine_layers"]["not_integer"] == [
        "head/MatMul (decode)", "head/MatMul (prefill)",
    ]  # fmt: skip
    assert "computed in float: head/MatMul (decode), head/MatMul (prefill)" in " ".join(result.stderr.split())


# -- the folder ----------------------------------------------------------------------------------------


def test_a_folder_has_what_runs_the_engine(engine: Engine, program: OnnxProgram) -> None:
    copied = {path.name for path in program.folder.iterdir()} - {MODEL, WEIGHTS, MANIFEST, "README.md"}
    assert {path.name for path in engine.folder.iterdir()} == copied | {PLAN, BUILD_LOG, ENGINE_MANIFEST}
    assert any("tokenizer" in name for name in copied)
    ids = load_tokenizer(program.folder, program.config).encode("千山鸟飞绝")
    assert load_tokenizer(engine.folder, engine.program.config).encode("千山鸟飞绝") == ids
    manifest = engine.manifest
    assert manifest["plan_sha256"] == hashlib.sha256(engine.plan_path.read_bytes()).hexdigest()
    engine.require_undamaged()
    others = [path for path in engine.folder.iterdir() if path.name != ENGINE_MANIFEST]
    assert manifest["sizes"] == {path.name: path.stat().st_size for path in others}
    log = (engine.folder / BUILD_LOG).read_text()
    assert f"Total Weights Memory: {manifest['memory']['weights']} bytes" in log
    assert manifest["memory"]["weights"] > 0.9 * (program.folder / WEIGHTS).stat().st_size
    for count in manifest["memory"]["activations"].values():
        assert f"Total Activation Memory: {count} bytes" in log
    assert manifest["memory"]["activations"].keys() == {PREFILL, DECODE}


def test_an_engine_says_what_it_was_built_of(engine: Engine, program: OnnxProgram) -> None:
    assert (engine.runtime, engine.version) == (rtx.NAME, vendor.load(rtx.NAME).version)
    assert engine.limits == Limits(max_batch=4, max_context=LENGTH, prefill_tokens=LENGTH)
    assert engine.profiles[0].shapes["past_key_values.3.value"][2] == (4, 2, LENGTH, 32)
    assert engine.built_on == BuiltOn(system="Linux")
    assert engine.program == OnnxProgram(**{
        name: getattr(program, name) for name in ("config", "signature", "dialect", "dtype", "logits", "recipe")
    }, folder=engine.folder, manifest=program.manifest)  # fmt: skip
    assert engine.manifest["implicit_int8"] is False


def test_a_checkpoint_is_exported_on_the_way(tmp_path: Path) -> None:
    """And nothing but the engine is left."""
    out = tmp_path / "there" / "engine"
    result = run("build", "demo", "--out", out, *RTX, "--max-context", LENGTH, "--max-batch", 2)
    assert (result.exit_code, result.stdout) == (0, "")
    shown = " ".join(result.stderr.split())
    for words in ("prefill 1 x 1, cache 128", "2 x 1, cache 128", "8 KV_CACHE_UPDATE", "products: 17 float16", "wrote"):
        assert words in shown
    assert list(out.parent.iterdir()) == [out]
    engine = load_engine(out)
    assert (engine.program.dialect, engine.program.dtype, engine.program.logits) == ("tensorrt", "float16", "last")
    assert engine.limits.max_context == engine.program.signature.static_length == LENGTH


# -- whole or not at all -------------------------------------------------------------------------------


def test_force_replaces_ours_only(program: OnnxProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the way is found before a checkpoint is exported."""
    out = tmp_path / "engine"
    (out / "inner").mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.delattr(exporter, "export")
        for source in (program.folder, "demo"):
            for given, said in (((), "--force"), (("--force",), "holds no manifest.json nor engine.json, so --force")):
                assert said in fails(2, "build", source, "--out", out, *RTX, *given)
    assert list(out.iterdir()) == [out / "inner"]
    (out / "inner").rmdir()
    before = built(program.folder, out)
    (out / "note").write_text("mine")
    for force, said in (
        (False, "exists; give another --out, or --force"),
        (True, "holds note, which glm-export did not"),
    ):
        with pytest.raises(InputError, match=said):
            built(program.folder, out, force=force)
    assert (out / "note").read_text() == "mine"
    (out / "note").unlink()
    after = built(program.folder, out, max_batch=2, force=True)
    assert [before.limits.max_batch, after.limits.max_batch] == [4, 2]
    assert list(tmp_path.iterdir()) == [out]


def test_a_build_that_fails_leaves_everything_as_it_was(engine: Engine, program: OnnxProgram, tmp_path: Path) -> None:
    """The parser refuses one program, the builder gives up on the other: its caches go nowhere."""
    refused = rtx.changed(program, tmp_path / "refused", cache_of_its_own).folder
    given_up = rtx.changed(program, tmp_path / "given up", lambda graph: graph.output.__delitem__(slice(1, None)))
    out = tmp_path / "engine"
    shutil.copytree(engine.folder, out)
    before = contents(out)
    for force in (False, True):
        with pytest.raises(InputError):
            built(refused, out, force=force)
        assert contents(out) == before
    with pytest.raises(EnvironmentMissingError, match=r"could not build .*given up: .* be a network output"):
        built(given_up.folder, out, force=True)
    assert contents(out) == before
    with pytest.raises(InputError):
        built(refused, tmp_path / "new")
    assert sorted(tmp_path.iterdir()) == [out, given_up.folder, refused]


INTERRUPTING = """
import os, signal, sys
from glm_export.deployment.build import build

class Phases:
    def task(self, name, total):
        print(name)
        if sys.argv[3] == name:
            os.kill(os.getpid(), signal.SIGINT)
        return lambda _: None

try:
    build(sys.argv[1], sys.argv[2], runtime="tensorrt-rtx", progress=Phases())
except KeyboardInterrupt:
    sys.exit(7)
"""


def test_interrupting_ends_the_build_and_leaves_nothing(program: OnnxProgram, tmp_path: Path) -> None:
    """Ctrl-C in the builder, which is C++: an exception there would end the process."""

    def phases(interrupted: str, status: int) -> list[str]:
        command = [sys.executable, "-c", INTERRUPTING, str(program.folder), str(tmp_path / "out"), interrupted]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == status, result.stderr
        return result.stdout.splitlines()

    found = phases("building engine", 7)
    assert list(tmp_path.iterdir()) == []
    assert 0 < len(found) < len(phases("never", 0))


# -- options -------------------------------------------------------------------------------------------


def test_targets_are_built_for_and_recorded(program: OnnxProgram, tmp_path: Path) -> None:
    out = tmp_path / "engine"
    targets = ("--compute-capability", "8.9", "--compute-capability", "12.0")
    assert run("build", program.folder, "--out", out, *RTX, *targets).exit_code == 0
    assert load_engine(out).compatibility.targets == ("8.9", "12.0")
    assert "Number of target compute capabilities: 2" in (out / BUILD_LOG).read_text()


def test_options_that_need_no_gpu(engine: Engine, program: OnnxProgram, tmp_path: Path) -> None:
    """Measured kernels are TensorRT's; TensorRT-RTX measures none, so it leaves the file alone."""
    out, timing = tmp_path / "engine", tmp_path / "timing.cache"
    timing.write_bytes(b"measured before")
    result = run(
        "build", program.folder, "--out", out, *RTX, "--weight-streaming", "--optimization-level", 1, "--workspace",
        0.5, "--timing-cache", timing,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    options = load_engine(out).manifest["options"]
    assert options == engine.manifest["options"] | {
        "weight_streaming": True, "optimization_level": 1, "workspace_bytes": 500_000_000,
    }  # fmt: skip
    assert "workspace 500.0 MB" in " ".join(result.stderr.split())
    assert timing.read_bytes() == b"measured before"
    assert sorted(tmp_path.iterdir()) == [out, timing]


@pytest.mark.parametrize("option", ["--stripped", "--refittable", "--version-compatible"])
def test_options_that_need_a_gpu(option: str, program: OnnxProgram, tmp_path: Path) -> None:
    line = fails(3, "build", program.folder, "--out", tmp_path / "engine", *RTX, option)
    assert f"{option} with tensorrt-rtx needs an NVIDIA GPU and its driver" in line
    line = fails(3, "build", program.folder, "--out", tmp_path, *RTX, "--compute-capability", "current", "--force")
    assert "the target 'current' needs an NVIDIA GPU" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--compute-capability", "5.2"), "no target '5.2'; it has 7.5, 8.0, 8.6, 8.9, 12.0"),
        (("--compute-capability", "current", "--compute-capability", "8.9"), "or 'current' alone"),
        (("--implicit-int8",), "tensorrt-rtx {version} has no implicit INT8"),
        (("--recipe", "int4-weights"), "is exported already: --recipe cannot change it"),
        (("--prefill-tokens", LENGTH + 1), f"--prefill-tokens {LENGTH + 1} exceeds --max-context {LENGTH}"),
        (("--max-context", LENGTH // 2), f"--max-context is {LENGTH // 2}, and the program holds {LENGTH} tokens"),
        (("--max-context", 0), "--max-context must be at least 1, found 0"),
        (("--family", "chatglm3"), "is exported already: --family cannot change it"),
        (("--workspace", 1e30), "--workspace must be more than 0 and fewer than 2^63 bytes"),
    ],
)
def test_options_that_cannot_be(
    options: tuple[object, ...], message: str, program: OnnxProgram, tmp_path: Path
) -> None:
    line = fails(2, "build", program.folder, "--out", tmp_path / "engine", *RTX, *options)
    assert message.format(version=vendor.load(rtx.NAME).version) in line
    assert list(tmp_path.iterdir()) == []


# -- what cannot be built ------------------------------------------------------------------------------


def test_a_runtime_that_is_not_installed(program: OnnxProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vendor, "load", vendor.load.__wrapped__)
    monkeypatch.setitem(vendor.MODULES, vendor.TENSORRT, ("a_module_nobody_has",))
    line = fails(3, "build", program.folder, "--out", tmp_path / "engine", "--runtime", "tensorrt")
    assert line == f"Error: tensorrt is not installed; {vendor.INSTALL[vendor.TENSORRT]}"


def test_sources_that_are_nothing_to_build(engine: Engine, tmp_path: Path, demo_program: OnnxProgram) -> None:
    out = ("--out", tmp_path / "out", *RTX)
    line = fails(2, "build", demo_program.folder, *out)
    assert "is of dialect onnx, which tensorrt-rtx" in line
    assert line.endswith("export with --dialect tensorrt")
    assert "is an engine already" in fails(2, "build", engine.folder, *out)
    assert "is no folder" in fails(2, "build", tmp_path / "nothing", *out)
    assert list(tmp_path.iterdir()) == []


def unknown_operator(graph: onnx.GraphProto) -> None:
    node_of(graph, "Sigmoid").op_type = "Sigmoidal"


def cache_of_its_own(graph: onnx.GraphProto) -> None:
    node_of(graph, "Attention").output.append("scores")


def wrong_shape(graph: onnx.GraphProto) -> None:
    node = node_of(graph, "Reshape")
    shape = onnx.numpy_helper.from_array(np.array([1, 1, 1, 7]), "seven")
    graph.initializer.append(shape)
    node.input[1] = shape.name


@pytest.mark.parametrize(
    ("change", "operator", "reason"),
    [
        (unknown_operator, "Sigmoidal", "Plugin not found"), (cache_of_its_own, "Attention", "one output"),
        (wrong_shape, "RotaryEmbedding", "must be less than or equal to headSize which is 7"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_node(
    change: Callable[[onnx.GraphProto], None], operator: str, reason: str, program: OnnxProgram, tmp_path: Path
) -> None:
    refused = rtx.changed(program, tmp_path / "program", change)
    model = onnx.load(str(refused.model_path), load_external_data=False)
    line = fails(2, "build", refused.folder, "--out", tmp_path / "engine", *RTX)
    assert f"cannot read {refused.model_path}: node {node_of(model.graph, operator).name!r} ({operator}): " in line
    assert reason in line.partition(f"({operator}): ")[2]
    assert list(tmp_path.iterdir()) == [refused.folder]
