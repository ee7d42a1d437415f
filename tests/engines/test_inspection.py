"""Engines asked what they are made of, and finished ones that this machine cannot load."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from glm_export.artifacts.engine import load_engine
from glm_export.engines import inspection, vendor
from glm_export.engines.inspection import NO_GPU, inspect_engine, try_inspection
from glm_export.engines.vendor import BuildLog, TensorRT
from glm_export.errors import CheckpointError
from tests.helpers import rtx
from tests.terminal.test_cli import run


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver is said to be there, as on a machine whose GPU an engine was not built for."""
    monkeypatch.setattr(inspection, "has_driver", lambda: True)
    monkeypatch.setattr(vendor, "has_driver", lambda: True)


def test_a_finished_engine_that_cannot_be_loaded_here_is_kept(driver: None, tmp_path: Path) -> None:
    """TensorRT-RTX itself refuses to load it: with no GPU here, none is the engine's."""
    rtx.require_installed()
    out = tmp_path / "engine"
    result = run(
        "build", "demo", "--out", out, "--runtime", rtx.NAME, "--max-context", 64, "--compute-capability", "8.9"
    )
    assert result.exit_code == 0, result.output
    manifest = load_engine(out).manifest
    why = manifest["not_inspected"]
    assert f"{rtx.NAME} {manifest['version']} cannot load engine.plan: " in why
    assert str(tmp_path) not in why
    assert f"not inspected: {why}" in result.stderr
    assert manifest["engine_layers"]["source"] == "build log"
    assert manifest["memory"]["activations"].keys() == {"prefill", "decode"}
    assert "cannot load engine.plan" in run("inspect", out).output


DIAGNOSTICS = SimpleNamespace(__members__={"VERSION_MISMATCH": 1, "UNSUPPORTED_CC": 2, "OLD_CUDA_DRIVER": 4})
"""TensorRT-RTX's flags, by their names and bits."""


def stand_in(engine: Any, *, found: int = 0) -> TensorRT:
    """TensorRT-RTX on a machine with a GPU, as far as loading asks: the engine, or None and a verdict's bits."""
    log = BuildLog()

    class Runtime:
        engine_header_size = 4

        def __init__(self, logger: object) -> None:
            assert log.errors == []

        def deserialize_cuda_engine(self, plan: Any) -> Any:
            if engine is None:
                log.take("ERROR", "Target GPU SM 86 is not supported")
            return engine

        def get_engine_validity(self, header: bytes) -> tuple[int, int]:
            log.take("ERROR", "asked once more")
            assert header == b"head"
            return 2, found

    module = SimpleNamespace(
        Runtime=Runtime, EngineInvalidityDiagnostics=DIAGNOSTICS, LayerInformationFormat=SimpleNamespace(JSON=1)
    )
    return TensorRT(name=vendor.TENSORRT_RTX, module=module, version="1.7", logger=None, log=log)


@pytest.mark.parametrize(
    ("found", "verdict"), [(2, "UNSUPPORTED_CC: "), (3, "VERSION_MISMATCH, UNSUPPORTED_CC: "), (0, "")]
)
def test_the_runtimes_own_verdict_is_told(found: int, verdict: str, driver: None, tmp_path: Path) -> None:
    plan = tmp_path / "engine.plan"
    plan.write_bytes(b"header and more")
    inspected, why = try_inspection(stand_in(None, found=found), plan)
    assert inspected is None
    assert why == f"tensorrt-rtx 1.7 cannot load engine.plan: {verdict}Target GPU SM 86 is not supported"
    # Who loads it is told the same, with the whole path.
    with pytest.raises(CheckpointError, match=f"{plan}: .*Target GPU SM 86"):
        inspect_engine(stand_in(None, found=found), plan)


@pytest.mark.parametrize("text", ["no JSON", '{"Layers": [{"Inputs": [3]}]}'])
def test_an_inspector_that_answers_otherwise(text: str, driver: None, tmp_path: Path) -> None:
    """A newer version's description ends no build."""
    plan = tmp_path / "engine.plan"
    plan.write_bytes(b"header and more")
    inspector = SimpleNamespace(get_engine_information=lambda _: text)
    engine = SimpleNamespace(create_engine_inspector=lambda: inspector)
    inspected, why = try_inspection(stand_in(engine), plan)
    assert inspected is None
    assert "described engine.plan in a way this version cannot read: " in str(why)


def test_without_a_driver_nothing_is_asked(tmp_path: Path) -> None:
    """Some of TensorRT's calls end the process there; and there is no plan here at all."""
    with rtx.no_gpu():
        assert try_inspection(stand_in(None), tmp_path / "engine.plan") == (None, NO_GPU)
