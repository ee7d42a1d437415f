"""Calibration of a model with a P-Tuning prefix: what is measured stands behind it, and it is measured itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from glm_export import api
from glm_export.artifacts.initial_cache import INITIAL_CACHE
from glm_export.calibration.layerwise.calibrate import calibrate
from glm_export.calibration.ranges import Ranges
from glm_export.checkpoints.checkpoint import open_checkpoint
from glm_export.evaluation.layer_costs import sensitivity
from glm_export.exporter import export as exporter
from glm_export.exporter.options import resolve_options
from glm_export.generation.generate import generate_ids
from glm_export.generation.stopping import Stopping
from glm_export.sessions.onnxruntime.session import OrtSession
from glm_export.sessions.torch import load_reference
from tests.helpers.golden_folders import folder, golden_of
from tests.helpers.walked import WholeModel, differences, random_corpus

NAMES = ("ptuning_full_chatglm2", "ptuning_full_chatglm")
STORED = 2e-3
"""Hidden states lie on disk in 11 bits between layers."""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Ranges]:
    made: dict[str, Ranges] = {}
    root = tmp_path_factory.mktemp("ranges")

    def of(name: str) -> Ranges:
        if name not in made:
            checkpoint = open_checkpoint(folder(name))
            made[name] = calibrate(checkpoint, random_corpus(checkpoint.config), root / name)
        return made[name]

    return of


@pytest.mark.parametrize("name", NAMES)
def test_layer_by_layer_is_the_whole_model(name: str, measured: Callable[[str], Ranges]) -> None:
    checkpoint = open_checkpoint(folder(name))
    samples = random_corpus(checkpoint.config).samples
    whole = WholeModel(load_reference(checkpoint), samples, checkpoint.initial_cache)
    assert max(differences(measured(name), whole).values()) <= STORED
    bare = replace(checkpoint, config=replace(checkpoint.config, prefix_length=0), prefix=None)
    without = WholeModel(load_reference(bare), samples)
    assert max(differences(measured(name), without).values()) > 20 * STORED


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dialect", ["onnx", "ort", "portable"])
def test_a_cache_of_integers(name: str, dialect: str, measured: Callable[[str], Ranges], tmp_path: Path) -> None:
    """The prefix is rounded by the program's own scales; both sides of ``check`` begin with it so."""
    checkpoint = open_checkpoint(folder(name))
    program = exporter.export(checkpoint, tmp_path / "out", dialect=dialect, recipe="int8-kv", ranges=measured(name))
    stored = load_file(program.folder / INITIAL_CACHE)
    assert {array.dtype.name for array in stored.values()} == {"int8"}
    assert max(int(np.abs(array.astype(int)).max()) for array in stored.values()) > 60
    assert api.check(program, checkpoint).passed
    with OrtSession(program) as session, api.load_session(checkpoint) as reference:
        expected, first = (one.first_past(1) for one in (reference, session))
        for key, array in expected.items():
            assert np.abs(first[key] - array).max() <= np.abs(array).max() / 100
        prompts = [session.prompt(golden_of(name)[0][0].tolist())] * 2
        ids = [row.ids for row in generate_ids(session, prompts, stopping=Stopping(max_new_tokens=4))]
        assert ids[0] == ids[1]


def test_costs_by_layer_and_quality(measured: Callable[[str], Ranges], tmp_path: Path) -> None:
    """A program that is not quantized costs nothing on text, which one without its prefix would."""
    name = "ptuning_full_chatglm2"
    checkpoint = open_checkpoint(folder(name))
    corpus = random_corpus(checkpoint.config)
    corpus = replace(corpus, samples=tuple(replace(sample, counted_from=4) for sample in corpus.samples))
    for dialect in ("ort", "portable"):
        program = exporter.export(checkpoint, tmp_path / dialect, dialect=dialect)
        report = api.quality(program, checkpoint, corpus=corpus).report
        assert report.kl < 1e-6
    target = resolve_options(checkpoint.config, dialect="ort", recipe="int8-weights")
    assert target.quantization is not None
    costs = sensitivity(checkpoint, target.quantization, corpus)
    assert 0 < max(cost.kl for cost in costs) < 0.1
