"""The GPU kit without a GPU: its list, what it says where there is none, going on, the report, and the goals."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.benchmarks.planted_results import H100, HOME, Facts, alive, everything, result, step

kit, parts, record, report, speeds, verdict = map(
    import_module, ("kit", "parts", "record", "report", "speeds", "verdict")
)


def run_sh(*words: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(HOME / "run.sh"), "--python", sys.executable, *words]
    # Hides the GPU of a machine that has one.
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_list_names_every_part_and_so_does_the_readme() -> None:
    listed = run_sh("--list")
    assert listed.returncode == 0
    names = [line.split()[0] for line in listed.stdout.splitlines()[:-1]]
    assert names == [part.name for part in parts.PARTS]
    assert len(set(names)) == len(names)
    readme = (HOME / "README.md").read_text(encoding="utf-8")
    assert [name for name in names if f"`{name}`" not in readme] == []


def test_without_a_gpu_one_line_says_so(tmp_path: Path) -> None:
    found = run_sh("--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"))
    assert (found.returncode, found.stdout) == (3, "")
    assert found.stderr.splitlines() == [kit.NO_GPU]
    assert not list(tmp_path.iterdir())


def test_every_part_has_its_function() -> None:
    """Modules import without a GPU and without what may be missing on it."""
    script = (
        "import sys\n"
        "for name in ('transformers', 'tensorrt', 'tensorrt_rtx', 'tensorrt_rtx_bindings'): sys.modules[name] = None\n"
        f"sys.path.insert(0, {str(HOME)!r})\n"
        "from importlib import import_module\n"
        "from parts import PARTS\n"
        "for part in PARTS: assert callable(getattr(import_module(part.module), part.function)), part\n"
    )
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


# -- running and going on ----------------------------------------------------------------------------------------------


def test_what_passed_is_skipped_and_the_rest_runs(
    at: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Failed, not available, asked for again, always, of a rehearsal: each runs; other code alone is no reason.

    What failed in this code runs after what is still untried or was cut off, but before the verdict.
    """
    ran: list[str] = []

    def apart(_: Any, part: Any, *__: Any) -> Facts:
        ran.append(part.name)
        return result(part.name, [step("one")])

    monkeypatch.setattr(kit.Run, "apart", apart)
    monkeypatch.setattr(kit, "gpu_is_there", lambda: True)
    now = record.identity(at)
    for name, passed, code in (
        ("machine", True, "ffffffffffff"), ("onnxruntime-calibrate", False, now), ("peer-eager", None, now),
        ("full-calibrate", True, f"{now} rehearsal"), ("verdict", True, now),
    ):  # fmt: skip
        record.save(at.out, result(name, [step("one", passed)], code=code))
    words = ["--work", str(at.work), "--out", str(at.out)]
    chosen = ["machine", "onnxruntime-calibrate", "peer-eager", "full-calibrate", "verdict"]
    assert kit.main([*words, *chosen]) == 0
    assert ran == ["peer-eager", "full-calibrate", "onnxruntime-calibrate", "verdict"]
    for code, error in ((now, "cut off at its limit of 540 s"), ("ffffffffffff", "ended with exit code 1")):
        ran.clear()
        record.save(at.out, result("onnxruntime-calibrate", [], code=code, error=error, passed=False))
        assert kit.main([*words, *chosen]) == 0
        assert ran == chosen[1:], error
    assert "machine: passed already" in capsys.readouterr().out
    ran.clear()
    assert kit.main([*words, "--again", "machine"]) == 0
    assert ran == ["machine"]
    with pytest.raises(SystemExit) as refused:
        kit.main([*words, "nonsense"])
    assert refused.value.code == 2
    assert "part 'nonsense' is unknown" in capsys.readouterr().err


def test_a_probe_that_failed_stays_before_its_parts(at: Any) -> None:
    code = record.identity(at)
    for name in ("probe-onnxruntime", "onnxruntime-graphs"):
        record.save(at.out, result(name, [step("one", False)], code=code))
    chosen = [kit.named(name) for name in ("onnxruntime-graphs", "onnxruntime-demo", "verdict")]
    ordered = kit.Run(at).untried_first(kit.with_probes(chosen, at))
    assert [part.name for part in ordered] == [
        "probe-onnxruntime", "onnxruntime-demo", "onnxruntime-graphs", "verdict",
    ]  # fmt: skip


def test_steps_that_passed_are_not_done_again(at: Any) -> None:
    done: list[str] = []

    def work(name: str, passed: bool | None = True) -> Callable[[], Facts]:
        def do() -> Facts:
            done.append(name)
            if passed is None:
                raise record.NotAvailableError("no such thing")
            if not passed:
                raise ValueError("broken")
            return {"needed": 0.1}

        return do

    first = record.Recorder("machine", at, "code")
    for name, passed in (("a", True), ("b", False), ("c", None)):
        first.step(name, work(name, passed))
    assert first.finish()["passed"] is False
    written = record.read(at.out, "machine")
    assert [(one["passed"], one.get("error"), one.get("reason")) for one in written["steps"]] == [
        (True, None, None), (False, "ValueError: broken", None), (None, None, "no such thing"),
    ]  # fmt: skip
    again = record.Recorder("machine", at, "code")
    assert [again.step(name, work(name))["needed"] for name in "abc"] == [0.1] * 3
    assert again.finish()["passed"] is True
    assert done == ["a", "b", "c", "b", "c"]
    # A part that is through leaves no steps, and other code takes none.
    assert [path.name for path in at.out.iterdir()] == ["machine.json"]
    third = record.Recorder("machine", at, "other")
    third.step("a", work("a"))
    assert record.Recorder("machine", at, "code")._earlier == {}


def test_a_part_that_breaks_is_a_result(at: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(recorder: Any) -> None:
        recorder.step("first", dict)
        raise RuntimeError("the rest broke")

    def missing(recorder: Any) -> None:
        raise record.NotAvailableError("tensorrt is not installed")

    monkeypatch.setitem(sys.modules, "made_up", SimpleNamespace(broken=broken, missing=missing))
    assert kit.inside(parts.Part("broken", "", 1, "made_up", "broken"), at, again=False) == 1
    found = record.read(at.out, "broken")
    assert (found["passed"], found["error"], len(found["steps"])) == (False, "RuntimeError: the rest broke", 1)
    assert kit.inside(parts.Part("missing", "", 1, "made_up", "missing"), at, again=False) == 0
    found = record.read(at.out, "missing")
    assert (found["passed"], found["reason"]) == (None, "tensorrt is not installed")


@pytest.mark.parametrize(
    ("ending", "said"),
    [("time.sleep(60)", "cut off at its limit"), ("os.kill(os.getpid(), 11)", "signal 11; its last words: last words")],
)
def test_a_process_that_does_not_come_back_keeps_its_steps(
    ending: str, said: str, at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing it started stays behind."""
    kept = record.kept_path(at.out, "machine")
    child = at.out / "child"
    script = (
        "import json, os, subprocess, time\n"
        f"line = json.dumps({step('first', code=record.identity(at))!r})\n"
        f"open({str(kept)!r}, 'w').write(line + chr(10) + line[:20])\n"
        f"open({str(child)!r}, 'w').write(str(subprocess.Popen(['sleep', '60']).pid))\n"
        f"print('last words', flush=True)\n{ending}\n"
    )
    monkeypatch.setattr(kit, "command", lambda *_, **__: [sys.executable, "-S", "-c", script])
    part = kit.named("machine")
    record.save(at.out, result("machine", [step("of an earlier run")]))
    found = kit.Run(at, limit=1.5).apart(part, at)
    assert (found["passed"], [one["step"] for one in found["steps"]]) == (False, ["first"])
    assert said in found["error"]
    assert record.read(at.out, "machine") == found
    deadline = time.monotonic() + 5
    while alive(int(child.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_results_are_whole_or_not_there(at: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    record.save(at.out, result("machine", [step("one")]))
    before = record.read(at.out, "machine")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("the machine went away")))
    with pytest.raises(OSError, match="went away"):
        record.save(at.out, result("machine", [step("two")]))
    assert record.read(at.out, "machine") == before
    (at.out / "machine.json").write_text('{"part": "machine", ')
    assert record.read(at.out, "machine") is None
    assert record.plain({"needed": float("inf"), "path": at.out, "all": (1, None)}) == {
        "needed": "inf", "path": str(at.out), "all": [1, None],
    }  # fmt: skip


# -- report and goals --------------------------------------------------------------------------------------------------


def test_report_has_machine_speeds_and_checks(at: Any) -> None:
    results = everything()
    results[0]["steps"].append(step("doctor", False, error="a|b\nbroke"))
    results.append(result("tensorrt-demo", [], passed=None, reason="tensorrt is not installed"))
    for one in results:
        record.save(at.out, one)
    text = kit.write_report(at.out).read_text(encoding="utf-8")
    for line in (
        f"- device: {H100}; driver: 580.1",
        "- versions: torch 2.11.0",
        "| tensorrt 11.4, float16 | 1 | 260.0 | 5.2 | 1.3 | 90% | 50.0 | 10240 | 3100 |",
        "| transformers compiled, float16 | 1 | 200.0 | – | – | – | 50.0 | 10240 | 3100 |",
        "| machine | doctor | DIFFERS OR FAILED | 1 | error a\\|b broke |",
        "| tensorrt-demo | the part | not available | 12.3 | tensorrt is not installed |",
    ):
        assert line in text.splitlines(), text
    assert "Rehearsal" not in text
    assert "different code" not in text
    assert "Rehearsal" in report.render([result("machine", [step("one")], rehearsal=True)])
    assert "different code" in report.render([*results, result("machine", [], code="ffffffffffff")])
    assert "Nothing has run yet" in report.render([])


def test_ratios_need_one_device() -> None:
    elsewhere = everything()
    for one in elsewhere[:3]:
        one["device"] = "another GPU"
    ours = next(one for one in speeds.speeds(elsewhere) if one["runtime"] == "tensorrt 11.4")
    assert speeds.times(elsewhere, speeds.COMPILED, ours) is None
    assert speeds.times(elsewhere, speeds.COMPILED, ours | {"device": "another GPU"}) == 1.3
    assert speeds.times(elsewhere, speeds.COMPILED, ours | {"device": "another GPU", "batch": 8}) is None
    states = {goal.name: goal.state for goal in verdict.goals(elsewhere)}
    assert states["TensorRT float16: decoding speed over transformers compiled, float16"] == verdict.OPEN


@pytest.mark.parametrize(
    ("changed", "goal", "state"),
    [
        ({"share": 0.6999}, "TensorRT float16: share", "missed"),
        ({"share": 0.7001}, "TensorRT float16: share", "least met"),
        ({"share": 0.8499}, "ONNX Runtime int8-weights: share", "least met"),
        ({"share": 0.8501}, "ONNX Runtime int8-weights: share", "met"),
        ({"engine_rate": 259.9}, "TensorRT float16: decoding speed", "missed"),
        ({"engine_rate": 260.1}, "TensorRT float16: decoding speed", "met"),
        ({"without_graph": 0.999}, "TensorRT float16: seconds", "missed"),
        ({"without_graph": 1.001}, "ONNX Runtime float16: seconds", "met"),
        ({}, "checks", "met"),
    ],
)
def test_goals_are_judged_at_their_bounds(changed: dict[str, float], goal: str, state: str) -> None:
    (found,) = (one for one in verdict.goals(everything(**changed)) if one.name.startswith(goal))
    assert found.state == state


def test_one_broken_check_or_part_misses_the_goal() -> None:
    for broken in (result("machine", [step("one", False, error="x")]), result("machine", [], error="x", passed=False)):
        (found,) = (one for one in verdict.goals([*everything(), broken]) if one.name.startswith("checks"))
        assert (found.state, found.found) == ("missed", 1)


def test_the_verdict_is_a_part_like_the_others(at: Any) -> None:
    with pytest.raises(record.NotAvailableError, match="no results"):
        verdict.verdict(record.Recorder("verdict", at, "code"))
    for one in everything(engine_rate=259.0):
        record.save(at.out, one)
    judge = record.Recorder("verdict", at, "code")
    verdict.verdict(judge)
    found = judge.finish()
    assert found["passed"] is False
    assert [one["step"] for one in found["steps"] if not one["passed"]] == [
        "TensorRT float16: decoding speed over transformers compiled, float16"
    ]
    text = kit.write_report(at.out).read_text(encoding="utf-8")
    row = "| TensorRT float16: decoding speed over transformers compiled, float16 | at least 1.3 | 1.29 | missed |"
    assert row in text
    # Only speeds: parity is open, and so is what was not measured.
    only = [one for one in everything() if one["part"] == "full-ort-int8"]
    assert {goal.state for goal in verdict.goals(only)} == {verdict.OPEN, verdict.MET}


# -- TensorRT 8.6 ------------------------------------------------------------------------------------------------------


def test_the_script_for_tensorrt_86_needs_little() -> None:
    """Its Python is 3.10 and has numpy, polygraphy and tensorrt."""
    tree = ast.parse((HOME / "tensorrt86.py").read_text(encoding="utf-8"), feature_version=(3, 10))
    found = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names] if isinstance(node, ast.Import)
            else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        )
    }  # fmt: skip
    assert found - set(sys.stdlib_module_names) == {"numpy", "polygraphy", "tensorrt"}
    assert not any(isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(tree))


def test_its_comparisons_find_what_is_planted() -> None:
    script: ModuleType = import_module("tensorrt86")
    random = np.random.default_rng(0)
    right = {"logits": random.standard_normal((1, 3, 7)).astype(np.float32)}
    case = [("prefill", {"input_ids": np.ones((1, 3), np.int64)}, right)]

    def answering(array: Any) -> Any:
        metadata = {"input_ids": SimpleNamespace(dtype=np.int32)}
        runner = SimpleNamespace(get_input_metadata=lambda: metadata, infer=lambda _: {"logits": array})
        return (runner, runner)

    assert script.parity(answering(right["logits"]), case)["needed"] == 0
    assert script.on_text(answering(right["logits"]), case)["kl"] == pytest.approx(0, abs=1e-12)
    off = right["logits"].copy()
    off[0, 1, 2] += 0.5 * np.abs(off).max()
    assert script.parity(answering(off), case)["needed"] == pytest.approx(0.5, rel=1e-3)
    assert script.on_text(answering(off), case)["kl"] > 1e-3
    off[0, 0, 0] = np.nan
    found = script.parity(answering(off), case)
    assert not found["finite"]
    assert found["needed"] > 1e6
    json.dumps(found, allow_nan=False)


def test_it_ends_without_a_gpu(tmp_path: Path) -> None:
    command = [sys.executable, str(HOME / "tensorrt86.py"), str(tmp_path), str(tmp_path), "--precision", "fp32"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    found = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (found.returncode, found.stdout.strip()) == (3, "no NVIDIA GPU or driver was found")
    assert found.returncode != -signal.SIGSEGV
