"""`check` of engines, over the stand-in: the same cases and verdicts as for programs, and controls that must fail."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glm_export import api
from glm_export.artifacts.program import OnnxProgram, load_program
from glm_export.checkpoints.checkpoint import Checkpoint
from glm_export.errors import InputError
from glm_export.evaluation.measure import measure
from glm_export.exporter import export as exporter
from glm_export.inputs.call_layout import CallLayout
from glm_export.proof import check_engine as engine_checks
from glm_export.proof.cases import Case, parity_cases
from glm_export.proof.check_engine import check_engine, require_same_program
from glm_export.sessions.onnxruntime.session import OrtSession
from glm_export.sessions.tensorrt.session import EngineSession
from tests.helpers.golden_data import Golden
from tests.helpers.stages import Recorded

pytest.importorskip(
    "tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed: pip install 'glm-export[rtx]' (Linux, x86-64)"
)

from tests.helpers.engine_stand_in import StandInEngine, stand_in_session

NAMES = ("chatglm2", "glm")
WRITTEN = Path(__file__).parents[1] / "golden" / "written_before"


@pytest.fixture(scope="module", params=NAMES)
def checkpoint(request: pytest.FixtureRequest) -> Checkpoint:
    return api.open_checkpoint(Golden(request.param).folder)


@pytest.fixture(scope="module")
def program(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> OnnxProgram:
    folder = tmp_path_factory.mktemp("program") / "out"
    return exporter.export(checkpoint, folder, dialect="tensorrt", logits="last", max_length=96)


@contextmanager
def engine_of(program: OnnxProgram, **limits: int) -> Iterator[tuple[EngineSession, StandInEngine]]:
    session, engine = stand_in_session(program, **limits)
    try:
        yield session, engine
    finally:
        session.close()


@pytest.mark.parametrize("limits", [{}, {"max_batch": 1}, {"max_batch": 2, "prefill_tokens": 40, "prefill_batch": 2}])
def test_an_engine_is_held_to_pytorch_and_to_its_program(
    limits: dict[str, int], checkpoint: Checkpoint, program: OnnxProgram
) -> None:
    """Whatever it was built for, every case runs; against ONNX Runtime, which stands in for it, to the last bit."""
    with engine_of(program, **limits) as (session, _):
        for against, name in ((checkpoint, "pytorch"), (program, "onnxruntime")):
            told = Recorded()
            report = check_engine(session.engine, against, loaded=session._loaded, polygraphy=False, progress=told)
            assert report.passed
            assert (report.parity.reference, report.parity.candidate) == (name, "tensorrt")
            cases = {output.case for output in report.parity.outputs}
            assert {"prefill", "chunk on a past", "decode", "padded batch", "batch decode"} < cases
            assert report.greedy_equal == report.greedy_total > 0
            assert told.whole()["cases"] == 2 * len(cases)
        assert report.parity.required_tolerance == 0


class Broken(StandInEngine):
    """An engine whose logits are off by one part in a hundred where several rows are decoded."""

    def compute(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        super().compute(shapes, addresses)
        rows, tokens = shapes["input_ids"]
        if rows > 1 and tokens == 1:
            self.logits(addresses, rows)[1:] *= 1.01


def test_control_a_defect_in_batches_fails(
    checkpoint: Checkpoint, program: OnnxProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.helpers.engine_stand_in.StandInEngine", Broken)
    with engine_of(program) as (session, _):
        report = check_engine(session.engine, checkpoint, loaded=session._loaded, polygraphy=False)
    assert not report.passed
    failed = {output.case for output in report.parity.outputs if not output.passed}
    assert failed == {"batch decode"}


def test_another_program_is_refused(program: OnnxProgram, tmp_path: Path) -> None:
    other = exporter.export(
        api.open_checkpoint(Golden("chatglm3").folder), tmp_path / "other", dialect="tensorrt", max_length=64
    )
    with engine_of(program) as (session, _):
        require_same_program(session.engine, program)
        with pytest.raises(InputError, match="was built of another export than"):
            require_same_program(session.engine, other)
        with pytest.raises(InputError, match="another checkpoint"):
            check_engine(session.engine, api.open_checkpoint(Golden("chatglm3").folder), loaded=session._loaded)


def test_quality_takes_as_many_rows_as_the_engine_does(tmp_path: Path) -> None:
    checkpoint = api.open_checkpoint("demo")
    program = exporter.export(checkpoint, tmp_path / "out", dialect="tensorrt", max_length=96)
    corpus = api.open_corpus("poems", checkpoint, sequence_length=48, max_samples=6)
    options: dict[str, Any] = {"greedy_rows": 3, "greedy_tokens": 8, "tasks": 2}
    with OrtSession(program) as reference, engine_of(program, max_batch=2) as (session, engine):
        report = measure(reference, session, corpus, **options)
    assert report.kl == pytest.approx(0, abs=1e-6)
    assert max(rows for rows, _ in engine.calls) == 2


def test_an_integer_cache_is_held_to_what_it_keeps_of_a_past(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``check`` holds its program. The control gives both sides pasts that lie between two of the cache's steps."""
    folder = shutil.copytree(WRITTEN / "onnx-int8-kv", tmp_path / "engine")  # where compiled kernels are kept
    program = load_program(folder)
    checkpoint = api.open_checkpoint(WRITTEN / "checkpoint")
    random = np.random.default_rng(0)

    def between_steps(*arguments: Any, **limits: int) -> list[Case]:
        made = parity_cases(*arguments, **limits)
        return [
            replace(case, tensors={
                name: (array + random.normal(0, 0.01, array.shape)).astype(array.dtype)
                if name.startswith("past_key_values") else array
                for name, array in case.tensors.items()
            })
            for case in made
        ]  # fmt: skip

    monkeypatch.setattr(engine_checks, "parity_cases", between_steps)
    with engine_of(program) as (session, _):
        report = check_engine(session.engine, checkpoint, loaded=session._loaded, polygraphy=False)
        monkeypatch.setattr(CallLayout, "rounded_past", lambda _, tensors: tensors)
        control = check_engine(session.engine, checkpoint, loaded=session._loaded, polygraphy=False)
    rounded, as_given = (
        {one.case: one.required_tolerance for one in each.parity.outputs if one.output == "logits"}
        for each in (report, control)
    )
    assert report.passed
    assert as_given["decode"] > 1e-4 > 10 * rounded["decode"]
    assert as_given["prefill"] == rounded["prefill"]  # which has no past
