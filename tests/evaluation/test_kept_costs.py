"""A budget goes on where it was stopped: the same answer, nothing measured twice, nothing taken of another run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from glm_export import api
from glm_export.checkpoints.checkpoint import Checkpoint
from glm_export.evaluation import layer_costs
from glm_export.exporter.options import ResolvedOptions, resolve_options
from glm_export.progress import Advance


class StoppedError(Exception):
    """As if killed."""


@pytest.fixture
def target(demo_checkpoint: Checkpoint) -> ResolvedOptions:
    return resolve_options(demo_checkpoint, dialect="ort", recipe="int4-weights")


class Counted:
    """Counts measurements, and stops behind some."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls, self.most, self._kl = 0, 10**9, layer_costs._Simulation.kl
        patch.setattr(layer_costs._Simulation, "kl", lambda *given: self._counted(*given))

    def _counted(self, simulation: layer_costs._Simulation, weights: list[str], advance: Advance) -> float:
        if self.calls == self.most:
            raise StoppedError
        self.calls += 1
        return self._kl(simulation, weights, advance)


def test_a_budget_goes_on_where_it_was_stopped(
    demo_checkpoint: Checkpoint, target: ResolvedOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = api.open_corpus("poems", demo_checkpoint, max_samples=2)
    counted, kept, taken = Counted(monkeypatch), tmp_path / ".out.costs.json", list[int]()
    whole = api.exclude_layers(demo_checkpoint, target, "kl=0.01", corpus)
    needed, counted.calls, counted.most = counted.calls, 0, 5
    with pytest.raises(StoppedError):
        api.exclude_layers(demo_checkpoint, target, "kl=0.01", corpus, kept=kept)
    assert len(json.loads(kept.read_text())["kl"]) == 5
    counted.calls, counted.most = 0, 10**9
    again = api.exclude_layers(
        demo_checkpoint, target, "kl=0.01", corpus, kept=kept, on_plan=lambda _, before: taken.append(before)
    )
    assert again == whole
    assert (counted.calls, taken) == (needed - 5, [5])
    # All of it is there now; another text begins anew, and so does a file that is damaged.
    counted.calls = 0
    assert api.exclude_layers(demo_checkpoint, target, "kl=0.01", corpus, kept=kept) == whole
    assert counted.calls == 0
    other = api.open_corpus("poems", demo_checkpoint, max_samples=1)
    api.exclude_layers(demo_checkpoint, target, "kl=0.01", other, kept=kept)
    assert counted.calls > 10
    counted.calls = 0
    kept.write_text("{")
    assert api.exclude_layers(demo_checkpoint, target, "kl=0.01", corpus, kept=kept) == whole
    assert counted.calls == needed
    assert [path.name for path in tmp_path.iterdir()] == [kept.name]


def test_a_sample_is_read_by_default(demo_checkpoint: Checkpoint, target: ResolvedOptions) -> None:
    read = []

    def seen(corpus: object, _: int) -> None:
        read.append(corpus)
        raise StoppedError

    for layered in (False, True):
        with pytest.raises(StoppedError):
            api.exclude_layers(demo_checkpoint, target, "kl=1", "poems", layer_by_layer=layered, on_plan=seen)
    assert [len(corpus.samples) for corpus in read] == [16, 16]


IDENTITY = """
import json
from glm_export import api
from glm_export.evaluation.kept_costs import identity_of
from glm_export.exporter.options import ExportOptions, resolve_options
opened = api.open_checkpoint("demo")
target = resolve_options(opened, ExportOptions(dialect="ort", recipe="int8-token"))
read = api.open_corpus("poems", opened, max_samples=1)
print(json.dumps(identity_of(opened, target.quantization, read, dtype="float32", layer_by_layer=False)))
"""


def test_another_process_has_the_same_identity() -> None:
    """Sets of another hash seed come in another order: what one process kept the next did not take up."""
    told = [
        subprocess.run(
            [sys.executable, "-c", IDENTITY],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert json.loads(told[0])["recipe"]["name"] == "int8-token"
    assert len(set(told)) == 1
