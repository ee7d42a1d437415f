"""Which layer costs how much, mixed precision within a budget, and the files other runtimes read scales from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from glm_export import api
from glm_export.calibration import recipes
from glm_export.calibration.corpus.corpus import Corpus
from glm_export.calibration.quantization import GENAI_KV_SCALES, Quantization
from glm_export.calibration.ranges import Ranges
from glm_export.calibration.trt_cache import CALIBRATION_CACHE, cache_text, read_cache
from glm_export.errors import InputError
from glm_export.evaluation.layer_costs import exclude_layers, sensitivity
from glm_export.exporter.calibration_cache import product_inputs
from glm_export.exporter.options import resolve_options
from glm_export.graphs import dialects
from glm_export.inputs.prompts import prefill_feeds
from glm_export.sessions.torch import load_reference

CHECKPOINT = api.open_checkpoint("demo")


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return api.open_corpus("poems", CHECKPOINT, max_samples=12)


@pytest.fixture(scope="module")
def ranges(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Ranges:
    return api.calibrate("demo", tmp_path_factory.mktemp("ranges") / "demo", corpus=corpus)


def quantization(ranges: Ranges, name: str) -> Quantization:
    return ranges.quantization(recipes.load(name).carried_by(dialects.load("onnx").can), "float32")


def kl_of(found: Quantization, corpus: Corpus) -> float:
    """The same figure without exchanging layers: two whole models, plain loops, float64."""
    plain, quantized = load_reference(CHECKPOINT), load_reference(CHECKPOINT, quantization=found)
    divergences: list[float] = []
    for sample in corpus.samples:
        feeds = prefill_feeds([sample.prompt], CHECKPOINT.config).named().values()
        tensors = [torch.from_numpy(array) for array in feeds]
        p, q = (torch.log_softmax(model(*tensors).logits[0].double(), -1) for model in (plain, quantized))
        counted = slice(sample.counted_from - 1, len(sample.prompt.ids) - 1)
        divergences += (p[counted].exp() * (p[counted] - q[counted])).sum(-1).tolist()
    return float(np.mean(divergences))


@pytest.mark.parametrize("name", ["int8-static", "int8-smoothquant"])
def test_the_promised_divergence_is_that_of_the_whole_model(name: str, ranges: Ranges, corpus: Corpus) -> None:
    """Layers exchanged one by one, smoothing done by each, against a model with everything folded and rounded."""
    found = quantization(ranges, name)
    mixed = exclude_layers(CHECKPOINT, found, corpus, kl=1e9)
    assert not mixed.excluded
    # Folded or not, a value at the border between two integers may fall to either.
    assert mixed.kl == mixed.kl_all == pytest.approx(kl_of(found, corpus), rel=0.1)


def test_the_fewest_layers_are_spared(ranges: Ranges, corpus: Corpus) -> None:
    found = quantization(ranges, "int8-static")
    free = exclude_layers(CHECKPOINT, found, corpus, kl=1e9)
    mixed = exclude_layers(CHECKPOINT, found, corpus, kl=free.kl_all / 3)
    dearest = [cost.weight for cost in free.costs]
    assert 0 < len(mixed.excluded) < len(dearest)
    assert list(mixed.excluded) == dearest[: len(mixed.excluded)]
    assert mixed.kl <= free.kl_all / 3
    kept = replace(found, excluded=mixed.excluded)
    assert kl_of(kept, corpus) == pytest.approx(mixed.kl, rel=0.02)
    # One fewer is too few.
    fewer = dict(list(mixed.excluded.items())[:-1])
    assert kl_of(replace(found, excluded=fewer), corpus) > free.kl_all / 3
    assert len(exclude_layers(CHECKPOINT, found, corpus, kl=0.0).excluded) == len(dearest)


def test_a_planted_bad_layer_is_the_dearest(ranges: Ranges, corpus: Corpus) -> None:
    found = quantization(ranges, "int8-static")
    culprit = "layers.0.mlp.gate_up.weight"
    worse = replace(found, input_scales={**found.input_scales, culprit: found.input_scales[culprit] * 400})
    assert sensitivity(CHECKPOINT, worse, corpus)[0].weight == culprit
    assert sensitivity(CHECKPOINT, found, corpus)[0].weight != culprit


def test_spared_layers_stay_float_in_the_program(ranges: Ranges, corpus: Corpus, tmp_path: Path) -> None:
    target = resolve_options(CHECKPOINT.config, recipe="int8-static", ranges=ranges)
    mixed = api.exclude_layers(CHECKPOINT, target, "kl=5e-5", corpus)
    program = api.export("demo", tmp_path / "out", recipe="int8-static", ranges=ranges, excluded=mixed.excluded)
    initializers = ir.load(program.model_path).graph.initializers
    assert program.manifest["left_in_float"] == mixed.excluded
    for name in quantization(ranges, "int8-static").input_scales:
        assert (name in initializers) == (name in mixed.excluded)
    assert api.check(program, "demo").passed
    assert api.quality(program, "demo", corpus=corpus, budget="kl=1e-4").broken == ()


def test_the_gate_closes(ranges: Ranges, corpus: Corpus, tmp_path: Path) -> None:
    program = api.export("demo", tmp_path / "out", recipe="int8-static", ranges=ranges)
    verdict = api.quality(program, "demo", corpus=corpus, budget=["kl=0.0001", "top1=0.5"], by_layer=True)
    assert verdict.broken is not None
    assert len(verdict.broken) == 1
    assert "KL" in verdict.broken[0]
    assert verdict.costs is not None
    assert verdict.to_json()["corpus"]["licence"] == "public domain"


@pytest.mark.parametrize(("budget", "recipe"), [("top1=0.9", "int8-static"), ("kl=0.01", None)])
def test_budgets_an_export_cannot_hold_are_refused(budget: str, recipe: str | None, ranges: Ranges) -> None:
    target = resolve_options(CHECKPOINT.config, recipe=recipe, ranges=ranges)
    with pytest.raises(InputError, match="budget is kl=NUMBER, and needs --recipe"):
        api.exclude_layers(CHECKPOINT, target, budget)


# -- other runtimes' files -----------------------------------------------------------------------------


def test_genai_reads_the_scales_of_keys_and_values(ranges: Ranges, tmp_path: Path) -> None:
    program = api.export("demo", tmp_path / "out", recipe="int8-kv", ranges=ranges, dialect="ort")
    scales = json.loads((program.folder / GENAI_KV_SCALES).read_text())["scales"]
    layers = CHECKPOINT.config.num_layers
    assert len(scales["k_scales"]) == len(scales["v_scales"]) == layers
    graph = ir.load(program.model_path).graph
    for layer in range(layers):
        for kind, name in (("key", "k_scales"), ("value", "v_scales")):
            stored = graph.initializers[f"past_key_values.{layer}.{kind}.scale"].const_value
            assert stored is not None
            assert float(stored.numpy().item()) == pytest.approx(scales[name][layer], rel=1e-6)
    assert scales["k_scales"] != scales["v_scales"]


def test_a_calibration_cache_lies_beside_a_float_program(ranges: Ranges, tmp_path: Path) -> None:
    program = api.export("demo", tmp_path / "out", dialect="portable", ranges=ranges)
    thresholds = read_cache((program.folder / CALIBRATION_CACHE).read_text())
    inputs = product_inputs(ir.load(program.model_path))
    made = {value.name for node in ir.load(program.model_path).graph for value in node.outputs}
    assert len(thresholds) == 4 * CHECKPOINT.config.num_layers
    assert thresholds.keys() <= made
    for weight, tensor in inputs.items():
        if tensor in thresholds:
            assert thresholds[tensor] == pytest.approx(ranges.threshold(weight, "mse"), rel=1e-6)
    assert not (api.export("demo", tmp_path / "plain", dialect="portable").folder / CALIBRATION_CACHE).exists()


def test_the_cache_is_written_as_tensorrt_writes_it() -> None:
    """The line NVIDIA's documentation shows: a scale of 1 / 127 for an input of magnitude 1."""
    text = cache_text({"data": 1.0, "a: b": 127.0}, version="8601")
    assert text == "TRT-8601-EntropyCalibration2\ndata: 3c010204\na: b: 3f800000\n"
    assert read_cache(text) == pytest.approx({"data": 1.0, "a: b": 127.0})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "starts with TRT-"),
        ("data: 3c010204\n", "starts with TRT-"),
        ("TRT-8601-EntropyCalibration2\ndata 3c010204\n", "line 2"),
        ("TRT-8601-EntropyCalibration2\ndata: 3c01\n", "line 2"),
        ("TRT-8601-EntropyCalibration2\ndata: 7fc00000\n", "line 2"),
    ],
)
def test_what_is_no_cache_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_cache(text)


def test_thresholds_that_are_none_are_refused() -> None:
    for threshold in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="positive threshold"):
            cache_text({"data": threshold})
    with pytest.raises(InputError, match="unknown"):
        cache_text({"data": 1.0}, algorithm="Guess")
