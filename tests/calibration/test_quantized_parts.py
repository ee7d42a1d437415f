"""What quantized programs are made of: scales moved into weights, GPTQ's integers, layers TensorRT finds; outliers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import load_file

from glm_export import api, embedded
from glm_export.artifacts.program import WEIGHTS, OnnxProgram
from glm_export.calibration import recipes
from glm_export.calibration.layerwise.calibrate import calibrate
from glm_export.calibration.quantization import QUANTIZATION, Quantization
from glm_export.calibration.recipe import ExcludedWeights, Recipe
from glm_export.calibration.rounded_folder import INTEGERS, SCALES, rounded_name
from glm_export.checkpoints.checkpoint import Checkpoint
from glm_export.evaluation.recall import recall
from glm_export.graphs import dialects
from glm_export.graphs.rules.qdq import matmul as explicit_lowering
from glm_export.proof.cases import parity_cases
from glm_export.proof.compare import TOLERANCES, compare_runs
from glm_export.proof.runners import canonical_signature, run_both
from glm_export.sessions.onnxruntime import runtime
from glm_export.sessions.onnxruntime.session import OrtSession
from glm_export.sessions.torch import TorchSession
from glm_export.spec.weight_formats import QdqWeights
from tests.helpers import rtx
from tests.helpers.tiny import random_tensors, tiny_values, write_checkpoint
from tests.helpers.walked import GPTQ, Made, one_thread, poems, random_corpus, tracing_once, weight_bytes


@pytest.fixture(autouse=True, scope="module")
def alone() -> Iterator[None]:
    with one_thread(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "usable_threads", lambda: 1)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    with tracing_once():
        yield Made(tmp_path_factory.mktemp("quantized"))


# -- smoothing, alone ----------------------------------------------------------------------------------


def against_float(program: OnnxProgram, checkpoint: Checkpoint) -> float:
    """What the program needs against the checkpoint as it is, nothing smoothed and nothing rounded."""
    with TorchSession(checkpoint) as reference, OrtSession(program) as candidate:
        cases = parity_cases(reference, program.config, canonical_signature(program))
        results = run_both(reference, program, candidate, cases)
        return compare_runs(results, [case.name for case in cases], "float32").required_tolerance


def smoothing_recipe(**changes: Any) -> Recipe:
    kept: dict[str, Any] = {"layers": None, "head": None, "dtypes": frozenset({"float32"})}
    return Recipe(name="smoothing", summary="", tolerance=0.0, smoothing="smoothquant", **kept | changes)


def nothing_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: weights are multiplied, and neither parameters nor the program divide."""
    monkeypatch.setattr(Quantization, "folded", lambda *_: {})
    monkeypatch.setattr(explicit_lowering, "divided", lambda x, *_: x)


@pytest.mark.parametrize("source", ["demo", "chatglm2", "glm4_hf", "glm"])
def test_folded_scales_change_nothing(source: str, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scales calibration found, in norms with and without bias and in gates; nothing is rounded."""
    # No parameter can take what comes behind a GELU.
    excluded = (ExcludedWeights("*.down.weight", "GELU"),) if source == "glm" else ()
    monkeypatch.setattr(recipes, "load", lambda _: smoothing_recipe(excluded=excluded))
    checkpoint, ranges = made.checkpoint(source), made.ranges(source, "every")
    program = api.export(checkpoint, tmp_path / "out", recipe="smoothing", ranges=ranges)
    numbers = load_file(program.folder / QUANTIZATION)
    assert len(numbers) == checkpoint.config.num_layers * (2 if excluded else 3)
    assert against_float(program, checkpoint) <= TOLERANCES["float32"]
    nothing_divided(monkeypatch)
    program = api.export(checkpoint, tmp_path / "control", recipe="smoothing", ranges=ranges)
    assert against_float(program, checkpoint) > 0.01


def whole_numbers(folder: Path, family: str) -> Checkpoint:
    """A checkpoint whose products have weights that 8 bits hold exactly, scaled by powers of two or not."""
    tensors, random = random_tensors(tiny_values(family)), torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and "embed" not in name:
            tensor.copy_(torch.randint(-31, 32, tensor.shape, generator=random) * 2)
            tensor[:, 0] = 127
            tensor *= 2.0**-9
    return api.open_checkpoint(write_checkpoint(folder, tiny_values(family), tensors))


@pytest.mark.parametrize(
    ("family", "dialect", "divisors"),
    [
        ("chatglm", "onnx", 6), ("chatglm", "ort", 6), ("glm_infilling", "onnx", 2), ("glm4_moe", "onnx", 1),
        ("chatglm2", "onnx", 0), ("glm4", "portable", 0),
    ],
)  # fmt: skip
def test_what_the_program_divides_changes_nothing_either(
    family: str, dialect: str, divisors: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the residual comes from the norm, behind a GELU, beside experts. Scales are powers of two, so that
    quantized products are those of the float model."""
    monkeypatch.setattr(recipes, "load", lambda _: smoothing_recipe(explicit=QdqWeights()))
    checkpoint = whole_numbers(tmp_path / "checkpoint", family)
    ranges = calibrate(checkpoint, random_corpus(checkpoint.config), tmp_path / "ranges")
    random, tensors = np.random.default_rng(0), dict(ranges.tensors)
    for name in [name for name in tensors if name.endswith("/smoothquant")]:
        tensors[name] = 2.0 ** random.integers(-1, 2, tensors[name].shape).astype(np.float32)
        tensors[name][0] = 1
    ranges = replace(ranges, tensors=tensors)
    program = api.export(checkpoint, tmp_path / "out", recipe="smoothing", dialect=dialect, ranges=ranges)
    graph = onnx.load(str(program.model_path), load_external_data=False).graph
    assert sum(tensor.name.endswith(".divisor") for tensor in graph.initializer) == divisors
    assert against_float(program, checkpoint) <= TOLERANCES["float32"]
    nothing_divided(monkeypatch)
    program = api.export(checkpoint, tmp_path / "control", recipe="smoothing", dialect=dialect, ranges=ranges)
    assert against_float(program, checkpoint) > 0.01


# -- GPTQ ----------------------------------------------------------------------------------------------


def unpacked(stored: np.ndarray) -> np.ndarray:
    """4-bit integers, two a byte, the first one low."""
    return np.stack((stored & 15, stored >> 4), axis=-1).reshape(*stored.shape[:-1], -1).astype(np.int8)


@pytest.mark.parametrize("source", ["demo", "chatglm2", "glm"])
def test_programs_hold_the_integers_that_calibration_made(source: str, made: Made) -> None:
    """As ``MatMulNBits`` packs them and as ONNX does; a last block may be short. A proof takes them from the program,
    so this is where they are compared with what was found."""
    runtime, standard = (made.program(source, GPTQ, dialect) for dialect in ("ort", "onnx"))
    folder, layers = made.ranges(source, GPTQ).folder, made.checkpoint(source).config.num_layers
    compared = 0
    for layer in range(layers):
        found = load_file(folder / rounded_name(layer))
        for name in [key.removesuffix(INTEGERS) for key in found if key.endswith(INTEGERS)]:
            integers_NK, scales_NC = found[name + INTEGERS], found[name + SCALES]
            rows, columns = integers_NK.shape
            parts = {part: stored(runtime, f"{name}.{part}") for part in ("packed", "scales")}
            # Counted from the middle of 0 to 15; a short block is filled up.
            nibbles = unpacked(parts["packed"].view(np.uint8)).reshape(rows, -1) - 8
            assert np.array_equal(nibbles[:, :columns], integers_NK)
            assert not nibbles[:, columns:].any()
            assert np.array_equal(parts["scales"].view(np.float32).reshape(rows, -1), scales_NC)
            parts = {part: stored(standard, f"{name}.{part}") for part in ("packed", "scales")}
            nibbles = unpacked(parts["packed"].view(np.uint8))
            nibbles -= 16 * (nibbles > 7)
            assert np.array_equal(nibbles.reshape(columns, rows).T, integers_NK)
            assert np.array_equal(parts["scales"].view(np.float32).reshape(-1, rows).T, scales_NC)
            assert not np.array_equal(nibbles.reshape(-1, 2)[:, ::-1].reshape(columns, rows).T, integers_NK)
            compared += 1
    assert compared == 4 * layers


def stored(program: OnnxProgram, name: str) -> np.ndarray:
    """A tensor's bytes."""
    offset, length = weight_bytes(program, name)
    return np.fromfile(program.folder / WEIGHTS, np.uint8, length, offset=offset)


# -- TensorRT ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dialect", "inputs", "weights"),
    [
        ("int8-static", "tensorrt", 4, 4), ("int8-smoothquant", "tensorrt", 4, 4), ("fp8", "tensorrt", 4, 4),
        ("int8-weights", "tensorrt", 0, 4), ("int8-weights-block", "tensorrt", 0, 4),
        ("int4-weights", "tensorrt", 0, 4), ("int4-awq", "tensorrt", 0, 4), (GPTQ, "tensorrt", 0, 4),
        ("int8-static", "portable", 4, 4),
    ],
)  # fmt: skip
def test_tensorrt_builds_what_is_quantized(name: str, dialect: str, inputs: int, weights: int, made: Made) -> None:
    """Products a layer whose inputs are rounded, and whose weights are; and the head's where the recipe takes it."""
    rtx.require_installed()
    program = made.program("demo", name, dialect, "float16" if dialect == "tensorrt" else "float32")
    built, layers = rtx.build_program(program), program.config.num_layers
    head = int(recipes.load(name).carried_by(dialects.load(dialect).can).head is not None)
    assert built.network.get("QUANTIZE", 0) == layers * inputs
    assert built.network["DEQUANTIZE"] == layers * (inputs + weights) + head
    assert built.size > 0


# -- outliers ------------------------------------------------------------------------------------------


OUTLIER = 256


def with_outliers(folder: Path) -> Checkpoint:
    """The embedded model, the same function, in each layer one input of the MLP so many times as large."""
    source = api.open_checkpoint("demo")
    tensors = {name: source.tensor(name).float().clone() for name in source.weight_of}
    for layer in range(source.config.num_layers):
        prefix, channel = f"transformer.encoder.layers.{layer}", 17 * layer + 5
        tensors[f"{prefix}.post_attention_layernorm.weight"][channel] *= OUTLIER
        tensors[f"{prefix}.mlp.dense_h_to_4h.weight"][:, channel] /= OUTLIER
    write_checkpoint(folder, json.loads((source.folder / "config.json").read_text()), tensors)
    for path in source.folder.glob("tokenizer*"):
        shutil.copy(path, folder)
    return api.open_checkpoint(folder)


def test_smoothing_saves_what_outliers_ruin(made: Made, tmp_path: Path) -> None:
    """Of 60 poems; the control is the model without outliers, which survives both."""
    known = embedded.poems()[:60]
    checkpoint = with_outliers(tmp_path / "checkpoint")
    ranges = calibrate(checkpoint, poems(checkpoint), tmp_path / "ranges")

    def recited(program: OnnxProgram | Checkpoint) -> int:
        with api.load_session(program) as session:
            return recall(session, known).exact

    assert recited(checkpoint) == 60
    programs = {
        name: api.export(checkpoint, tmp_path / name, recipe=name, ranges=ranges)
        for name in ("int8-static", "int8-smoothquant")
    }
    found = {name: recited(program) for name, program in programs.items()}
    assert found["int8-static"] < 30
    assert found["int8-smoothquant"] >= 57
    assert recited(made.program("demo", "int8-static", "onnx")) >= 57
    gate: dict[str, Any] = {"corpus": "poems", "max_samples": 32, "budget": "kl=0.01,recall=0.99"}
    assert len(api.quality(programs["int8-static"], checkpoint, **gate).broken or ()) == 2
    assert api.quality(programs["int8-smoothquant"], checkpoint, **gate).broken == ()
