"""The proof itself: it passes what is right, fails what is wrong, and never passes nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from polygraphy.comparator import IterationResult, RunResults

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.checkpoints.checkpoint import open_checkpoint
from glm_export.cli import cli
from glm_export.errors import ConfigError, InputError
from glm_export.proof.compare import TOLERANCES, EmptyComparisonError, compare_runs
from tests.helpers.golden_data import CAUSAL, PREFIX, Golden
from tests.helpers.planted import PLANTED, plant


@pytest.mark.parametrize("name", [*CAUSAL, *PREFIX])
def test_every_golden_program_passes(name: str, exported: Callable[[str], OnnxProgram]) -> None:
    report = api.check(exported(name), Golden(name).folder)
    assert report.passed
    assert report.greedy_equal == report.greedy_total > 100
    assert 0 < report.parity.required_tolerance < 3e-6
    cases = {output.case for output in report.parity.outputs}
    assert cases == {
        "prefill", "chunk on a past", "decode", "padded batch", "batch decode", "end of context",
    }  # fmt: skip
    outputs = {output.output for output in report.parity.outputs}
    layers = range(exported(name).config.num_layers)
    assert outputs == {"logits", *(f"present.{i}.{part}" for i in layers for part in ("key", "value"))}
    assert all(output.top1 == 1.0 for output in report.parity.outputs if output.output == "logits")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "logits"), [("glm4_remote", "all"), ("glm4_remote", "last"), ("glm4_moe", "last"), ("chatglm", "all")]
)
def test_half_precision_programs_pass_their_own_bound(name: str, dtype: str, logits: str, tmp_path: Path) -> None:
    source = Golden(name).folder
    program = api.export(source, tmp_path / "out", dtype=dtype, logits=logits)
    report = api.check(program, source)
    assert report.passed
    assert report.parity.dtype == dtype
    # ChatGLM-6B multiplies its residual by 7.5 in every layer, and what was rounded with it.
    share = 1.0 if name == "chatglm" else 0.5
    assert 1e-5 < report.parity.required_tolerance < TOLERANCES[dtype] * share


@pytest.mark.parametrize("defect", PLANTED)
@pytest.mark.parametrize("name", ["chatglm2", "glm_hf"])
def test_planted_defects_fail(name: str, defect: str, exported: Callable[[str], OnnxProgram], tmp_path: Path) -> None:
    program = plant(exported(name), defect, tmp_path / "planted")
    report = api.check(program, Golden(name).folder)
    assert not report.passed
    failed = {output.case for output in report.parity.outputs if not output.passed}
    assert failed == PLANTED[defect]


def test_reference_in_the_checkpoints_own_dtype(exported: Callable[[str], OnnxProgram]) -> None:
    report = api.check(exported("chatglm2"), Golden("chatglm2").folder, reference_dtype="float16")
    assert report.passed
    assert report.parity.dtype == "float16"
    assert report.parity.required_tolerance > 1e-5  # float16's rounding shows, and is not held to float32's bound


def test_reference_larger_than_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from glm_export.errors import EnvironmentMissingError
    from glm_export.sessions import torch as torch_sessions

    monkeypatch.setattr(torch_sessions, "available_memory", lambda: 1000)
    with pytest.raises(EnvironmentMissingError, match="--reference-dtype float16"):
        api.load_session(Golden("chatglm2").folder)
    checkpoint = open_checkpoint(Golden("chatglm2").folder)
    torch_sessions.TorchSession(checkpoint, "float16").close()  # read in place


def test_another_checkpoint_is_refused(exported: Callable[[str], OnnxProgram]) -> None:
    with pytest.raises(InputError, match=r"was exported from 'chatglm2', and .* is another checkpoint \(files or"):
        api.check(exported("chatglm2"), Golden("chatglm2_32k").folder)


def test_the_right_checkpoint_is_named_where_it_is_found(
    exported: Callable[[str], OnnxProgram], demo_program: OnnxProgram
) -> None:
    """Embedded, or beside the one that was given; a model of the same name that is another is not."""
    with pytest.raises(InputError, match=r"give demo, which it came from$"):
        api.check(demo_program, "demo-glm")
    beside = re.escape(str(Golden("chatglm2").folder))
    with pytest.raises(InputError, match=rf"give {beside}, which it came from$"):
        api.check(exported("chatglm2"), Golden("chatglm3").folder)


def test_what_is_judged_of_a_rounded_program_is_said(exported: Callable[[str], OnnxProgram], tmp_path: Path) -> None:
    source = Golden("chatglm2").folder
    api.export(source, tmp_path / "rounded", dialect="ort", recipe="int8-token")
    said = CliRunner().invoke(cli, ["check", str(tmp_path / "rounded"), "--against", str(source)]).stdout
    assert "judged: that it computes what int8-token says" in said
    assert "not judged: what int8-token costs on text" in said
    assert "(ADR 7)" in said
    plain = CliRunner().invoke(cli, ["check", str(exported("chatglm2").folder), "--against", str(source)]).stdout
    assert "judged" not in plain


@pytest.mark.parametrize("other", ["chatglm3", "glm4_hf", "glm4_moe", "chatglm"])
@pytest.mark.parametrize("name", ["chatglm2", "glm"])
def test_a_checkpoint_of_another_family_is_said_to_be_one(
    name: str, other: str, exported: Callable[[str], OnnxProgram]
) -> None:
    """Read as the program's family, such a config.json lacks keys, which is no news to anybody."""
    program, folder = exported(name), Golden(other).folder
    theirs = open_checkpoint(folder).config.family
    told = f"is a program of family {program.config.family}, and .* is another checkpoint, of family {theirs}; give"
    for compare in (api.check, api.quality):
        with pytest.raises(InputError, match=told) as raised:
            compare(program, folder)
        assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match=told):
        api.check(program, open_checkpoint(folder))


def test_a_damaged_config_is_not_called_another_family(chatglm2_copy: Path, tmp_path: Path) -> None:
    program = api.export(chatglm2_copy, tmp_path / "out")
    path = chatglm2_copy / "config.json"
    path.write_text(path.read_text().replace('"kv_channels"', '"kv_chanels"'))
    with pytest.raises(ConfigError, match="kv_chan"):
        api.check(program, chatglm2_copy)


def test_a_program_is_held_to_a_program_as_it_is(exported: Callable[[str], OnnxProgram]) -> None:
    report = api.check(exported("chatglm2"), exported("chatglm2").folder)
    assert report.passed
    assert report.parity.required_tolerance == 0
    assert report.parity.reference == "onnxruntime of chatglm2"
    with pytest.raises(InputError, match="exported folder"):
        api.load_session(api.open_checkpoint(exported("chatglm2").folder))


# -- comparing recorded runs ------------------------------------------------------------------------


def _runs(reference: dict[str, np.ndarray], candidate: dict[str, np.ndarray]) -> RunResults:
    return RunResults([("a", [IterationResult(reference, 0.0, "a")]), ("b", [IterationResult(candidate, 0.0, "b")])])


def test_report_states_the_smallest_tolerance_that_passes() -> None:
    reference = np.array([[10.0, -4.0]], np.float32)
    candidate = reference + np.array([[0.0, 5e-5]], np.float32)
    report = compare_runs(_runs({"logits": reference}, {"logits": candidate}), ["case"], "float32")
    (output,) = report.outputs
    assert report.passed
    assert output.scale == 10
    np.testing.assert_allclose(
        [output.max_abs, output.required_tolerance, report.required_tolerance], [5e-5, 5e-6, 5e-6], rtol=1e-2
    )
    worse = compare_runs(_runs({"logits": reference}, {"logits": candidate + 1e-3}), ["case"], "float32")
    assert not worse.passed
    np.testing.assert_allclose(worse.required_tolerance, 1.05e-4, rtol=1e-2)


def test_recorded_runs_survive_a_file(tmp_path: Path) -> None:
    """A run can be saved, and compared later or elsewhere."""
    results = _runs({"logits": np.eye(3, dtype=np.float32)}, {"logits": np.eye(3, dtype=np.float32)})
    results.save(str(tmp_path / "runs.json"))
    loaded = RunResults.load(str(tmp_path / "runs.json"))
    assert compare_runs(loaded, ["case"], "float32") == compare_runs(results, ["case"], "float32")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_candidate_that_is_not_finite_fails(bad: float) -> None:
    candidate = np.ones((1, 4), np.float32)
    candidate[0, 2] = bad
    report = compare_runs(_runs({"logits": np.ones((1, 4), np.float32)}, {"logits": candidate}), ["case"], "float32")
    assert not report.passed
    assert report.required_tolerance == np.inf


def test_another_shape_fails() -> None:
    one, other = np.ones((1, 4), np.float32), np.ones((1, 5), np.float32)
    assert not compare_runs(_runs({"logits": one}, {"logits": other}), ["case"], "float32").passed


@pytest.mark.parametrize(
    ("reference", "candidate", "cases"),
    [
        ({}, {}, ["case"]),
        ({"logits": np.ones(1)}, {"scores": np.ones(1)}, ["case"]),
        ({"logits": np.ones(0)}, {"logits": np.ones(0)}, ["case"]),
        ({"logits": np.ones(1)}, {"logits": np.ones(1)}, []),
        ({"logits": np.ones(1)}, {"logits": np.ones(1)}, ["one", "two"]),
        ({"logits": np.full(1, np.nan)}, {"logits": np.ones(1)}, ["case"]),
    ],
)
def test_nothing_compared_is_an_error(
    reference: dict[str, np.ndarray], candidate: dict[str, np.ndarray], cases: list[str]
) -> None:
    with pytest.raises(EmptyComparisonError):
        compare_runs(_runs(reference, candidate), cases, "float32")


def test_one_run_is_no_comparison() -> None:
    single = RunResults([("a", [IterationResult({"logits": np.ones(1)}, 0.0, "a")])])
    with pytest.raises(EmptyComparisonError, match="two runs"):
        compare_runs(single, ["case"], "float32")


def test_greedy_tokens_count_in_float32(exported: Callable[[str], OnnxProgram]) -> None:
    report = api.check(exported("chatglm2"), open_checkpoint(Golden("chatglm2").folder))
    assert not replace(report, greedy_equal=report.greedy_total - 1).passed
    half = replace(report.parity, dtype="float16")
    assert replace(report, parity=half, greedy_equal=0).passed
