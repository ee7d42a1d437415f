"""The kit's checks on the CPU: each passes on what is right, and finds what is planted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.sessions.onnxruntime.cuda_graph import CapturedGraph, GraphIds
from glm_export.sessions.onnxruntime.session import OrtSession
from tests.benchmarks.planted_results import record, result, step
from tests.helpers import rtx
from tests.helpers.host_device import HostDevice

at_work, attention, placement, report = map(
    import_module, ("at_work", "checks.attention", "checks.placement", "report")
)  # fmt: skip


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> OnnxProgram:
    """The embedded model as it is captured."""
    return api.export("demo", tmp_path_factory.mktemp("demo") / "program", dialect="ort")


def opened(program: OnnxProgram, *, forgetful: str | None) -> Any:
    """A session whose steps are bound once as for a graph; a forgetful one keeps the first prompt's buffers.

    ``forgetful``: which of its steps, by who chooses their tokens.
    """

    @contextmanager
    def session_of(graph: bool) -> Iterator[OrtSession]:
        with OrtSession(program, ["CPUExecutionProvider"]) as session:
            session.loop_on(HostDevice(), GraphIds() if graph else None)
            if graph:
                session._captured = CapturedGraph(session.runtime, session.signature, GraphIds(), "cpu")
                steps = {at_work.HOST: session._captured, at_work.DEVICE: session._looped}
                if forgetful is not None:
                    steps[forgetful].reset = lambda: None  # type: ignore[method-assign]
                session.cache = session.new_cache()
            yield session

    return session_of


@pytest.mark.parametrize("forgetful", [at_work.HOST, at_work.DEVICE])
def test_two_prompts_in_turn_show_a_graph_that_answers_for_the_first(program: OnnxProgram, forgetful: str) -> None:
    right = at_work.in_turn(opened(program, forgetful=None), "demo")
    assert right["passed"], right
    assert right["found"].count("the same, the same, the same") == 2
    found = at_work.in_turn(opened(program, forgetful=forgetful), "demo")
    assert (found["passed"], found["means"]) == (False, "a captured step answers for an earlier prompt")
    assert f"chosen by {forgetful}: the same, other tokens" in found["found"]


# -- one attention layer -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("queries", attention.QUERIES)
def test_one_attention_layer_is_held_to_torch(queries: int, tmp_path: Path) -> None:
    """ONNX Runtime's float16 layer is within its tolerance over every length; one that sees padding is not."""
    layer = attention.Layer("float16", attention.FUSED, queries, 256)
    right = attention.in_onnxruntime(attention.write_layer(tmp_path / "layer.onnx", layer, outer="float32"))
    found = attention.judged(layer, right)
    assert found["passed"], found
    assert 1e-5 < found["needed"] < found["tolerance"]
    blind = attention.judged(layer, lambda feeds: right(feeds | {"mask": np.ones_like(feeds["mask"])}))
    assert not blind["passed"]
    assert "inaccurate" in blind["means"]
    nothing = attention.judged(layer, lambda feeds: np.full_like(feeds["q"], np.nan))
    assert not nothing["passed"]
    wide = attention.judged(replace(layer, form=attention.WIDE), attention.reference)
    assert wide["do"].startswith("compute attention in float32 (float16, 256 columns")


def test_every_length_is_tried_padded_and_not() -> None:
    cases = list(attention.cases(attention.Layer("float16", attention.FUSED, 1, 8192)))
    assert {case.length for case in cases} == {1, 2, 2048, 4096, 8191, 8192}
    assert {case.padding > 0 for case in cases if case.length > 3} == {False, True}
    assert all(case.padding < case.length for case in cases)


def test_where_it_is_off_the_other_ways_are_tried(at: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As exported it is off by a rounding of the scores; in float32 it is right: the report says what to do."""

    def opened(_: Any, __: str, ___: Path, layer: Any) -> Any:
        if layer.form == attention.WIDE:
            return attention.reference
        return lambda feeds: attention.reference(feeds | {"q": np.round(feeds["q"] * 4) / 4})

    monkeypatch.setattr(attention, "opened", opened)
    monkeypatch.setattr(attention, "DTYPES", ("float16",))
    monkeypatch.setattr(attention, "FEW_COLUMNS", (256,))
    recorder = record.Recorder("tensorrt-attention", replace(at, rehearse=True), "code")
    attention.attention(recorder, "tensorrt")
    forms = [(one["form"], one["queries"], one["passed"]) for one in recorder.finish()["steps"]]
    assert forms == [
        (form, queries, form == attention.WIDE)
        for queries in attention.QUERIES for form in (attention.FUSED, attention.SEVERAL, attention.WIDE)
    ]  # fmt: skip
    text = report.render([record.read(at.out, "tensorrt-attention")])
    assert "| tensorrt | float16 | in float32 | 256 | 1 | 0 | 0.008 |" in text
    assert "compute attention in float32 (float16, 256 columns, 1 new tokens)" in text
    assert "fused attention is inaccurate here" in text


def test_the_layer_builds_in_tensorrt_rtx(tmp_path: Path) -> None:
    rtx.require_installed()
    raw_engine, vendor = import_module("checks.raw_engine"), rtx.vendor
    for dtype in attention.DTYPES:
        for form in (attention.FUSED, attention.SEVERAL, attention.WIDE):
            layer = attention.Layer(dtype, form, 1, 256)
            model = attention.write_layer(tmp_path / "layer.onnx", layer, outer=None)
            plan = raw_engine.build_plan(vendor.load(rtx.NAME), model, decompose=form != attention.FUSED)
            assert memoryview(plan).nbytes > 1000


# -- where nodes run ---------------------------------------------------------------------------------------------------


def test_nodes_are_counted_where_they_ran(
    program: OnnxProgram, at: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By ONNX Runtime's own profile, here of the CPU; a copy between devices is planted."""
    kit = replace(at, rehearse=True)
    found = placement.placed(program, tmp_path, kit)
    assert (found["passed"], found["gpu"], found["memcpy"]) == (True, 0, 0)
    assert found["on_cpu"]["GroupQueryAttention"] == program.config.num_layers
    assert not list(tmp_path.glob("profile*"))
    nodes = placement.profiled(program, tmp_path, kit)
    moved = {name: (op, placement.GPU) for name, (op, _) in nodes.items()}
    copied = moved | {"Memcpy_token_1": ("MemcpyToHost", placement.GPU), "count": ("Shape", "CPUExecutionProvider")}
    monkeypatch.setattr(placement, "profiled", lambda *_: copied)
    planted = placement.placed(program, tmp_path, kit)
    assert (planted["passed"], planted["gpu"], planted["cpu"], planted["memcpy"]) == (False, len(nodes), 1, 1)
    assert "no CUDA graph can be captured" in planted["means"]
    assert planted["found"] == f"{len(nodes)} nodes on the GPU, 1 on the CPU (Shape 1), 1 Memcpy"


# -- weights in a plan -------------------------------------------------------------------------------------------------


def test_narrow_weights_that_were_widened_or_doubled_are_found(at: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a real plan of TensorRT-RTX; one of the smallest shape is mostly kernels, so its size is not judged."""
    rtx.require_installed()
    full_size, engine_parts = import_module("full_size_parts"), import_module("engine_parts")
    kit = replace(at, rehearse=True, shape="tiny", runtime=rtx.NAME)
    recorder = record.Recorder("full-build-int8-weights", kit, "code")
    full_size.build(recorder, "int8-weights")
    steps = {one["step"]: one for one in recorder.finish()["steps"]}
    assert steps["weights stay narrow"]["passed"], steps
    engine = full_size.full_engine(recorder, "int8-weights").engine()
    monkeypatch.setattr(engine_parts, "JUDGED_FROM", 1)
    found = engine_parts.narrow(engine)
    assert (found["passed"], found["ratio"] > 1.2) == (False, True)
    assert "times its weights" in found["means"]
    widened = engine.manifest | {
        "engine_layers": {"products": {"prefill": {"int8 weights": 9}, "decode": {"float16": 9}}}
    }
    found = engine_parts.narrow(SimpleNamespace(manifest=widened, plan_path=engine.plan_path))
    assert found["means"] == "profile decode: no product reads narrow weights; they cost what floats do"


# -- the report --------------------------------------------------------------------------------------------------------


def test_the_report_asks_answers_and_says_what_to_do() -> None:
    text = report.render([
        result("machine", [step("memory bandwidth")]),
        result("onnxruntime-graphs", [step("a"), step("b", False, error="RuntimeError: x")]),
        result("tensorrt-demo", [], passed=None, reason="probe-tensorrt: tensorrt is not installed"),
        result("onnxruntime-placement", [step("ort", False, means="it stops", do="count on the GPU")]),
    ])  # fmt: skip
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")]
    answers = {row[0].split("`")[1]: row[1:] for row in rows}
    assert answers["machine"] == ["passed: 1 passed", "holds on this device, with the versions above", "nothing"]
    assert answers["onnxruntime-graphs"][0] == "DIFFERS OR FAILED: 1 passed, 1 differs or failed"
    assert answers["onnxruntime-graphs"][2].endswith("`run.sh onnxruntime-graphs`")
    assert answers["tensorrt-demo"][0] == "not available: probe-tensorrt: tensorrt is not installed"
    assert answers["onnxruntime-placement"][1].endswith("; it stops")
    assert answers["onnxruntime-placement"][2] == "count on the GPU"
    assert "1 parts hold, 2 differ or failed, 1 are not available" in text


def test_a_rehearsal_claims_nothing_and_a_part_left_out_asks_for_time(at: Any) -> None:
    """A CPU's speeds meet and miss no goal; checks that failed there are counted all the same."""
    verdict, planted = import_module("verdict"), import_module("tests.benchmarks.planted_results")
    left = result("full-calibrate", [], reason="left out: it takes about 240 s, and 77 s of the budget were left")
    for one in (*planted.everything(share=0.1), result("peer-eager", [step("a", False)]), left):
        record.save(at.out, one | {"rehearsal": True})
    judge = record.Recorder("verdict", replace(at, rehearse=True), "code")
    verdict.verdict(judge)
    judged = judge.finish()
    assert [one["step"] for one in judged["steps"] if one["passed"] is not None] == ["checks that differ or failed"]
    text = report.render([record.read(at.out, name) for name in ("machine", "full-calibrate", "verdict")])
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    assert f"| {report.REHEARSED} |" in rows["machine"]
    assert rows["full-calibrate"].endswith(f"| {report.MORE_TIME} |")
    assert "| 1 missed |" in rows["verdict"]
