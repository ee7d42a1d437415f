"""Quality and costs in the memory of one layer: the figures of whole models, and estimates beside exact ones."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.calibration import recipes
from glm_export.calibration.corpus.corpus import Corpus
from glm_export.calibration.quantization import Quantization
from glm_export.checkpoints.checkpoint import Checkpoint
from glm_export.errors import ComparisonFailedError, InputError
from glm_export.evaluation import judged
from glm_export.evaluation.layer_costs import exclude_layers, sensitivity
from glm_export.evaluation.layerwise import quality as layered, rounding_costs
from glm_export.evaluation.layerwise.hidden_rows import HiddenRows
from glm_export.evaluation.layerwise.quality import measure_layer_by_layer
from glm_export.evaluation.layerwise.rounding_costs import LayeredSimulation
from glm_export.evaluation.measure import measure
from glm_export.evaluation.report import QualityReport
from glm_export.graphs import dialects
from glm_export.sessions.torch import TorchSession
from tests.helpers.planted import plant

FORMS: dict[str, dict[str, Any]] = {
    "onnx": {},
    "onnx, 4 bits": {"recipe": "int4-weights"},
    "ort, 8 bits": {"dialect": "ort", "recipe": "int8-weights", "logits": "all"},
    "ort, 8 bits, last logits": {"dialect": "ort", "recipe": "int8-weights"},
    "ort, float16": {"dialect": "ort", "dtype": "float16", "logits": "all"},
    "static": {"dialect": "tensorrt", "max_length": 384},
}


USUAL = ("kl.value", "candidate_perplexity.value", "reference_perplexity.value", "tokens")


def checkpoint_and_text(model: str, samples: int = 8) -> tuple[Checkpoint, Corpus]:
    checkpoint = api.open_checkpoint(model)
    return checkpoint, api.open_corpus("poems", checkpoint, max_samples=samples)


def numbers(report: QualityReport) -> dict[str, Any]:
    """Every figure of tokens, flat."""
    values = asdict(report.statistics) | {"top5": report.top5, "worst": report.worst_kl, "tokens": report.tokens}
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= {f"{name}.{part}": inner for part, inner in value.items()} if isinstance(value, dict) else {name: value}
    return flat


@pytest.mark.parametrize(("model", "form"), [*(("demo", form) for form in FORMS), ("demo-glm", "onnx, 4 bits")])
def test_figures_are_those_of_whole_models(
    model: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, corpus = checkpoint_and_text(model)
    program = api.export(model, tmp_path / "out", **FORMS[form])
    # Logits of a few tokens at a time, and the head in many blocks.
    monkeypatch.setattr(layered, "LOGITS_BYTES", 7 * 4 * checkpoint.config.vocab_size)
    monkeypatch.setattr(layered, "BLOCK_BYTES", 100 * 4 * checkpoint.config.hidden_size)
    found = measure_layer_by_layer(program, checkpoint, corpus)
    with TorchSession(checkpoint) as reference, api.load_session(program) as session:
        expected = measure(reference, session, corpus, greedy_rows=0, tasks=0)
    told, known = numbers(found), numbers(expected)
    if "last" in form:
        # Read token by token in a session: of rounded activations some fall to the other side, and KL is small.
        known = {name: known[name] for name in USUAL}
    near = {name: value for name, value in known.items() if name.startswith(("kl", "worst"))}
    # A batch, which sessions read, moves last bits of float16.
    bound = 0.1 if "last" in form else 1e-2 if "float16" in form else 1e-4
    assert {name: told[name] for name in near} == pytest.approx(near, rel=bound, abs=1e-9)
    # What is a difference of two sides that agree is float32's noise.
    assert {name: told[name] for name in known} == pytest.approx(known, rel=bound, abs=1e-5)
    assert (found.worst_sample, found.samples) == (expected.worst_sample, expected.samples)
    assert (found.kl > 1e-9) == ("recipe" in FORMS[form] or "float16" in form)
    assert (found.greedy_rows, found.tasks, found.recall) == (0, 0, None)


def test_a_planted_defect_is_measured(demo_program: OnnxProgram, tmp_path: Path) -> None:
    """The control: half-split rotary is as far away as whole models say, and far from the sound program."""
    checkpoint, corpus = checkpoint_and_text("demo", 4)
    broken = plant(demo_program, "half-split rotary", tmp_path / "broken")
    found = measure_layer_by_layer(broken, checkpoint, corpus)
    with TorchSession(checkpoint) as reference, api.load_session(broken) as session:
        expected = measure(reference, session, corpus, greedy_rows=0, tasks=0)
    assert found.kl == pytest.approx(expected.kl, rel=1e-4)
    assert found.kl > 1 > 1e-9 > measure_layer_by_layer(demo_program, checkpoint, corpus).kl


def test_programs_that_compute_no_numbers(demo_program: OnnxProgram, tmp_path: Path) -> None:
    checkpoint, corpus = checkpoint_and_text("demo", 2)
    program = api.export("demo", tmp_path / "out")
    data = program.folder / "model.onnx.data"
    values = np.frombuffer(data.read_bytes(), np.float32).copy()
    values[:: len(values) // 64] = np.nan
    data.write_bytes(values.tobytes())
    with pytest.raises(ComparisonFailedError, match="the program, sample"):
        measure_layer_by_layer(program, checkpoint, corpus)


def test_rows_that_a_static_cache_cannot_hold(tmp_path: Path) -> None:
    checkpoint, corpus = checkpoint_and_text("demo")
    longest = max(len(sample.prompt.ids) for sample in corpus.samples)
    program = api.export("demo", tmp_path / "out", dialect="tensorrt", max_length=longest - 1)
    with pytest.raises(InputError, match=f"has {longest} tokens, and the program holds {longest - 1}; take a shorter"):
        measure_layer_by_layer(program, checkpoint, corpus)


def test_hidden_rows(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = [random.normal(size=(length, 5)).astype(np.float32) for length in (3, 1, 4)]
    with HiddenRows(tmp_path / "rows", [3, 1, 4], 5) as hidden:
        for place in (2, 0, 1):
            hidden.write(place, rows[place])
        for row, values in enumerate(rows):
            assert np.array_equal(hidden.read(row), values)
        hidden.write(0, 2 * rows[0])
        assert np.array_equal(hidden.read(0), 2 * rows[0])
        assert np.array_equal(hidden.read(1), rows[1])
    assert not list(tmp_path.iterdir())
    with HiddenRows(tmp_path / "rows", [3], 5) as hidden, pytest.raises(EOFError, match="row 0 should have been"):
        hidden.read(0)


# -- the cost of rounding ---------------------------------------------------------------------------------


def rounding(recipe: str) -> Quantization:
    return Quantization(recipe=recipes.load(recipe).carried_by(dialects.load("onnx").can))


@pytest.mark.parametrize("model", ["demo", "demo-glm"])
def test_estimates_stand_beside_exact_costs(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, corpus = checkpoint_and_text(model, 6)
    exact = {cost.weight: cost.kl for cost in sensitivity(checkpoint, rounding("int4-weights"), corpus)}
    costs = sensitivity(checkpoint, rounding("int4-weights"), corpus, layer_by_layer=True)
    found = {cost.weight: cost.kl for cost in costs}
    assert found.keys() == exact.keys()
    assert [cost.kl for cost in costs] == sorted(found.values(), reverse=True)
    shared = [name for name in exact if exact[name] > 0]
    first, second = (np.argsort(np.argsort([side[name] for name in shared])) for side in (exact, found))
    assert np.corrcoef(first, second)[0, 1] > 0.7
    assert {*sorted(exact, key=exact.__getitem__)[-2:]} <= {*sorted(found, key=found.__getitem__)[-4:]}
    assert 0.5 < sum(found.values()) / sum(exact.values()) < 2
    # The control: draws that are of another model's text say nothing of this one.
    monkeypatch.setattr(rounding_costs, "_times", lambda u_XV, weight_VH: torch.randn(len(u_XV), weight_VH.shape[1]))
    blind = sensitivity(checkpoint, rounding("int4-weights"), corpus, layer_by_layer=True)
    assert not 0.5 < sum(cost.kl for cost in blind) / sum(exact.values()) < 2


def test_what_is_rounded_together_is_measured() -> None:
    """Exchanging products layer by layer is the whole model's figure; and so is what a budget leaves in float."""
    checkpoint, corpus = checkpoint_and_text("demo", 6)
    found = rounding("int4-weights")
    whole = exclude_layers(checkpoint, found, corpus, kl=1e9)
    assert exclude_layers(checkpoint, found, corpus, kl=1e9, layer_by_layer=True).kl == pytest.approx(
        whole.kl, rel=1e-3
    )
    budget = whole.kl / 3
    mixed = exclude_layers(checkpoint, found, corpus, kl=budget, layer_by_layer=True)
    assert 0 < len(mixed.excluded) < len(mixed.costs)
    assert mixed.kl <= budget < mixed.kl_all
    assert all("estimated" in why for name, why in mixed.excluded.items() if name != "head.weight")
    with LayeredSimulation(checkpoint, found, "float32", corpus) as simulation:
        simulation.forward(lambda _: None)
        order = [cost.weight for cost in mixed.costs]
        assert simulation.kl(order[len(mixed.excluded) :]) == pytest.approx(mixed.kl)
        # One fewer is too few, and nothing rounded costs nothing.
        assert simulation.kl(order[len(mixed.excluded) - 1 :]) > budget
        assert simulation.kl([]) == 0


# -- asked for, or because memory is short ------------------------------------------------------------------


def test_the_verb_says_what_it_left_out(demo_program: OnnxProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"corpus": "poems", "max_samples": 2}
    verdict = api.quality(demo_program, "demo", layer_by_layer=True, budget="kl=1e-6", **asked)
    assert verdict.broken == ()
    assert verdict.report.greedy_rows == 0
    with pytest.raises(InputError, match="recall needs texts, and layer by layer none are written"):
        api.quality(demo_program, "demo", layer_by_layer=True, budget="recall=1", **asked)
    told: list[str] = []
    monkeypatch.setattr(judged.logger, "warning", told.append)
    assert api.quality(demo_program, "demo", **asked).report.greedy_rows == 2
    assert told == []
    monkeypatch.setattr(judged, "available_memory", lambda: 1 << 20)
    assert api.quality(demo_program, "demo", **asked).report.greedy_rows == 0
    assert told == ["both models do not fit this memory: measured layer by layer, and neither writes texts"]
