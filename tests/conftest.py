"""Fixtures that are dear to make: one export for each golden checkpoint, one of the embedded model."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.checkpoints.checkpoint import Checkpoint, open_checkpoint
from tests.helpers.golden_data import CAUSAL, Golden
from tests.helpers.walked import tracing_once

# Neither an example nor the making of one may lose a race on a busy machine.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

# Several processes share the cores already; PyTorch's own threads would wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def traced_once() -> Iterator[None]:
    """Tracing is most of an export, and depends on sizes, dtype and logits alone: each is traced once a process.

    What is kept is the exporter's own graph, cloned for every export; commands in processes of their own trace anew.
    """
    with tracing_once():
        yield


@pytest.fixture(autouse=True)
def usual_levels() -> None:
    """Libraries that a test before imported may have had every log tell more, and ours with them."""
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("glm_export").setLevel(logging.NOTSET)


@pytest.fixture(params=CAUSAL)
def golden(request: pytest.FixtureRequest) -> Golden:
    """Every causal family's golden data in turn."""
    return Golden(request.param)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], OnnxProgram]:
    """The float32 program of a golden checkpoint, made once."""
    made: dict[str, OnnxProgram] = {}
    root = tmp_path_factory.mktemp("exported")

    def export(name: str) -> OnnxProgram:
        if name not in made:
            made[name] = api.export(Golden(name).folder, root / name)
        return made[name]

    return export


@pytest.fixture(scope="session")
def demo_checkpoint() -> Checkpoint:
    """The embedded model."""
    return api.open_checkpoint("demo")


@pytest.fixture(scope="session")
def demo_program(tmp_path_factory: pytest.TempPathFactory) -> OnnxProgram:
    """The embedded model, exported once."""
    return api.export("demo", tmp_path_factory.mktemp("demo") / "onnx")


@pytest.fixture
def chatglm2_copy(tmp_path: Path) -> Path:
    """A golden ChatGLM2 checkpoint that a test may damage."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    source = Golden("chatglm2").folder
    for path in source.iterdir():
        if "golden" not in path.name:
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture
def opened() -> Callable[[Path], Checkpoint]:
    """Open a folder."""
    return open_checkpoint
