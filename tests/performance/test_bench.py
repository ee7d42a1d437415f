"""Measuring: real runs of the embedded models at tiny sizes. No timing is asserted, only that figures hang together."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.cli import cli
from glm_export.errors import EnvironmentMissingError, InputError
from glm_export.graphs.weight_traffic import program_weight_traffic
from glm_export.machine.memory import read_bandwidth, resident_bytes
from glm_export.performance import bench as bench_module
from glm_export.performance.bench import bench
from glm_export.performance.measure import _Rounds, measure, percentile
from glm_export.performance.report import BenchOptions, BenchReport
from glm_export.sessions.onnxruntime.session import OrtSession
from glm_export.sessions.torch import torch_weight_traffic
from glm_export.terminal.bench import show_bench
from tests.helpers.host_device import HostDevice
from tests.helpers.walked import poems

TINY = BenchOptions(prompt_tokens=8, context=4, new_tokens=6, batch=2, rounds=2, threads=1)
ARGUMENTS = ("--prompt-tokens", "8", "--context", "4", "--new-tokens", "6", "--rounds", "1", "--threads", "1")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["bench", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture(scope="module")
def report(demo_program: OnnxProgram) -> BenchReport:
    return bench(demo_program.folder, TINY)


def embedded_bytes() -> int:
    """Of the embedded model's parameters, all but the embedding table; it is float32 and its head is its own."""
    from glm_export.api import load_session
    from glm_export.sessions.torch import TorchSession

    session = load_session("demo")
    assert isinstance(session, TorchSession)
    return sum(p.nbytes for name, p in session.model.named_parameters() if name != "embedding.weight")


def test_figures_of_a_program_hang_together(report: BenchReport, demo_program: OnnxProgram) -> None:
    assert (report.runtime, report.dialect, report.dtype, report.device) == ("onnxruntime", "onnx", "float32", "cpu")
    assert report.options == TINY
    assert 0 < report.step_p50_ms <= report.step_p90_ms <= report.step_p99_ms
    assert min(report.load_s, report.prefill_tokens_s, report.decode_tokens_s) > 0
    assert report.first_token_s > 0
    config = demo_program.config
    # Four layers' keys and values of both rows, half way.
    columns = TINY.context + TINY.new_tokens // 2
    assert report.step_cache_bytes == 2 * 4 * 2 * columns * config.kv_heads * config.head_dim * 4
    assert report.bandwidth_bytes_s is not None
    assert report.floor_ms is not None
    assert report.share_of_floor is not None
    read = report.step_weight_bytes + report.step_cache_bytes
    assert report.floor_ms == pytest.approx(1000 * read / report.bandwidth_bytes_s)
    floor_tokens_s = TINY.batch * 1000 / report.floor_ms
    assert report.share_of_floor == pytest.approx(report.decode_tokens_s / floor_tokens_s)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells anonymous from file-backed memory")
def test_memory_is_that_of_a_process_with_the_model_alone(report: BenchReport) -> None:
    assert report.peak_anonymous_bytes is not None
    assert report.libraries_anonymous_bytes is not None
    assert 10_000_000 < report.libraries_anonymous_bytes < report.peak_anonymous_bytes
    # This test's own process holds far more by now; the child started afresh.
    assert report.peak_anonymous_bytes < 1_000_000_000
    assert resident_bytes(pid=2**22 + 1) is None


def test_json_has_every_field_and_the_floor(report: BenchReport) -> None:
    values = json.loads(json.dumps(report.to_json()))
    assert set(values) == {field.name for field in fields(BenchReport)} | {"floor_ms", "share_of_floor"}
    assert values["machine"]["cores"] >= 1
    assert "numpy" in values["machine"]["packages"]


def test_a_step_reads_every_weight_but_the_embedding_table(demo_program: OnnxProgram) -> None:
    expected = embedded_bytes()
    config = demo_program.config
    for batch in (1, 3):
        rows = batch * config.hidden_size * 4
        found = program_weight_traffic(demo_program.model_path, batch)
        # Beside the weights a step takes a few rows and scalars, of the rotary tables for one.
        assert expected + rows <= found < expected + rows + batch * 2000


def test_a_table_that_is_also_the_head_is_read_whole(tmp_path: Path) -> None:
    import torch

    model = torch.nn.Sequential(torch.nn.Embedding(10, 4), torch.nn.Linear(4, 10, bias=False))
    assert torch_weight_traffic(model, batch=2) == 2 * 16 + 160
    model[1].weight = model[0].weight
    assert torch_weight_traffic(model, batch=2) == 160
    table = onnx.numpy_helper.from_array(np.zeros((10, 4), np.float32), "table")
    unused = onnx.numpy_helper.from_array(np.zeros((99,), np.float32), "unused")
    gather = onnx.helper.make_node("Gather", ["table", "ids"], ["rows"])
    multiply = onnx.helper.make_node("MatMul", ["x", "table"], ["y"])
    for nodes, expected in (([gather], 3 * 16), ([gather, multiply], 160)):
        graph = onnx.helper.make_graph(nodes, "g", [], [], [table, unused])
        onnx.save(onnx.helper.make_model(graph), tmp_path / "model.onnx")
        assert program_weight_traffic(tmp_path / "model.onnx", batch=3) == expected


def test_a_checkpoint_runs_in_pytorch_and_prefix_families_run() -> None:
    facts = measure("demo-glm", BenchOptions(prompt_tokens=8, context=4, new_tokens=2, rounds=1))
    assert (facts["runtime"], facts["dialect"], facts["dtype"]) == ("pytorch", None, "float32")
    assert facts["decode_tokens_s"] > 0


def test_a_cache_of_integers_is_counted_as_integers(tmp_path: Path) -> None:
    """`bench` of an ``int8-kv`` program ended in a KeyError."""
    from glm_export import api

    checkpoint = api.open_checkpoint("demo")
    ranges = api.calibrate(checkpoint, tmp_path / "ranges", corpus=poems(checkpoint, 2))
    program = api.export(checkpoint, tmp_path / "program", recipe="int8-kv", ranges=ranges)
    options = BenchOptions(prompt_tokens=8, context=4, new_tokens=2, rounds=1)
    facts, config = measure(str(program.folder), options), program.config
    assert facts["step_cache_bytes"] == 2 * config.num_layers * (4 + 1) * config.kv_heads * config.head_dim


def test_verb(demo_program: OnnxProgram, report: BenchReport) -> None:
    result = run(demo_program.folder, *ARGUMENTS, "--json")
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert values["options"] == {
        "prompt_tokens": 8, "context": 4, "new_tokens": 6, "batch": 1, "rounds": 1, "threads": 1,
    }  # fmt: skip
    console = Console(width=120, file=io.StringIO())
    show_bench(console, report)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "1 thread, batch 2, median of 2 rounds" in shown
    assert "of the floor" in shown
    assert "6 tokens after 4" in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--rounds", "0"), "rounds must be at least 1, found 0"),
        (("--batch", "-1"), "batch must be at least 1, found -1"),
        (("--threads", "0"), "threads must be at least 1, found 0"),
        (("--prompt-tokens", "513"), "513 prompt tokens are wanted, the model's context is 512"),
        (("--context", "500"), "564 context and new tokens are wanted, the model's context is 512"),
    ],
)
def test_options_that_cannot_be(arguments: tuple[str, ...], said: str) -> None:
    result = run("demo", *arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert said in line


def test_what_is_no_model_exits_2(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1


def test_errors_of_the_measuring_process_come_through(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = json.dumps({"rounds": 0})
    with pytest.raises(InputError, match="rounds must be at least 1"):
        bench_module._measured_apart(["measure", "demo", options])
    with pytest.raises(EnvironmentMissingError, match="the measuring process ended with exit code 1: ValueError"):
        bench_module._measured_apart(["bandwidth", "cpu", "many"])
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(EnvironmentMissingError, match="exit code 1: it said nothing"):
        bench_module._measured_apart(["measure", str(tmp_path), "{}"])


def test_percentiles_and_bandwidth() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert [percentile(values, percent) for percent in (50, 90, 99)] == [50, 90, 99]
    assert percentile([7.0], 99) == 7.0
    bandwidth = read_bandwidth(1)
    assert bandwidth is not None
    assert bandwidth > 1e8


def test_a_session_that_chooses_its_tokens_is_measured_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One time a step, and no logits fetched for it."""
    program = api.export("demo", tmp_path / "ort", dialect="ort")
    options = BenchOptions(context=5, new_tokens=7, batch=2, rounds=1)
    with OrtSession(program, ["CPUExecutionProvider"]) as session:
        rounds = _Rounds(session, options)
        session.loop_on(HostDevice())
        monkeypatch.setattr(OrtSession, "decode", lambda *_: pytest.fail("the host was asked to choose"))
        taken = rounds._decode(7)
        assert len(taken) == 7
        assert min(taken) > 0
        assert rounds.run()["decode_tokens_s"] > 0
