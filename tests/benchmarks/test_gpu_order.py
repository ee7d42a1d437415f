"""What the kit runs and in what order: probes before their parts, a time budget, one checkpoint, and its own end."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.planted_results import HOME, alive, ended_by_sigterm, record, result, silent_python, step

kit, parts, full_size = map(import_module, ("kit", "parts", "full_size_parts"))


def test_parts_run_by_what_they_are_worth() -> None:
    names = [part.name for part in parts.PARTS]
    first = [
        "machine", "probe-onnxruntime", "session-on-gpu", "onnxruntime-demo", "onnxruntime-graphs",
        "medium-ort-float16", "medium-ort-int4", "medium-peer-compiled", "onnxruntime-demo-recipes",
        "full-ort-float16", "peer-compiled", "tensorrt-demo", "full-ort-int8", "verdict",
    ]  # fmt: skip
    assert sorted(first, key=names.index) == first
    for part in parts.PARTS:
        assert all(names.index(f"probe-{runtime}") < names.index(part.name) for runtime in part.runtimes)
    assert all(probe.limit <= 60 for probe in parts.PROBES.values())


def test_chosen_parts_bring_their_probes(at: Any) -> None:
    chosen = [kit.named(name) for name in ("full-build-float16", "tensorrt-8.6", "machine")]
    found = [part.name for part in kit.with_probes(chosen, at)]
    assert found == [
        "probe-tensorrt", "probe-tensorrt-rtx", "full-build-float16", "probe-tensorrt-8.6", "tensorrt-8.6", "machine",
    ]  # fmt: skip
    asked = kit.with_probes(chosen[:1], replace(at, runtime="tensorrt-rtx"))
    assert [part.name for part in asked] == ["probe-tensorrt-rtx", "full-build-float16"]


def test_a_probe_that_fails_closes_its_parts_with_the_reason(
    at: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A Python whose library is missing one, and one that is not there at all; the part itself is not started."""
    python = tmp_path / "bin" / "trt86-python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\necho 'libnvinfer.so.8: cannot open shared object file' >&2\nexit 1\n")
    python.chmod(0o755)
    words = ["--on-cpu", "--work", str(at.work), "--out", str(at.out), "tensorrt-8.6"]
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(python.parent), prepend=":")
        assert kit.main(words) == 0
    found = record.read(at.out, "tensorrt-8.6")
    assert (found["passed"], found["steps"]) == (None, [])
    assert found["reason"].startswith("probe-tensorrt-8.6: trt86-python ended with 1")
    assert "libnvinfer.so.8" in found["reason"]
    assert "\n" not in found["reason"]
    assert not (at.out / "tensorrt-8.6.log").exists()
    assert kit.main(words) == 0
    assert record.read(at.out, "tensorrt-8.6")["reason"] == "probe-tensorrt-8.6: trt86-python is not on PATH"
    assert "trt86-python is not on PATH" in capsys.readouterr().out


def test_any_of_several_runtimes_opens_a_part(at: Any) -> None:
    part = kit.named("full-build-float16")
    record.save(at.out, result("probe-tensorrt", [step("one", None, reason="not installed")]))
    assert kit.closed(part, at) == "probe-tensorrt: not installed; probe-tensorrt-rtx: it did not run"
    record.save(at.out, result("probe-tensorrt-rtx", [step("one")]))
    assert kit.closed(part, at) is None
    assert kit.closed(part, replace(at, runtime="tensorrt")) == "probe-tensorrt: not installed"


def test_what_does_not_fit_the_budget_is_left_with_the_reason(at: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it did before is neither lost nor asked for again; the verdict needs no time."""
    ran: list[str] = []

    def apart(_: Any, part: Any, *__: Any) -> Any:
        ran.append(part.name)
        return result(part.name, [step("one")])

    monkeypatch.setattr(kit.Run, "apart", apart)
    run = kit.Run(at, budget=150.0)
    assert run.one(kit.named("full-calibrate"))["reason"] == (
        "left out: it takes about 240 s, and 150 s of the budget were left"
    )
    assert record.read(at.out, "full-calibrate")["passed"] is None
    # Three of its four minutes were done by an earlier run.
    path = record.kept_path(at.out, "full-calibrate")
    kept = record.json.dumps(step("measured", code=record.identity(at), seconds=180.0))
    path.write_text(kept + "\n")
    run.one(kit.named("full-calibrate"))
    record.save(at.out, result("peer-eager", [step("speed, batch 1")], passed=False))
    assert "left out" in run.one(kit.named("peer-eager"))["reason"]
    assert record.read(at.out, "peer-eager")["passed"] is False
    # Of earlier code it has not failed; of this code it has, and the run ends with 1.
    assert run.one(kit.named("peer-eager"))["passed"] is None
    record.save(at.out, result("peer-eager", [step("speed")], passed=False, code=record.identity(at)))
    assert run.one(kit.named("peer-eager"))["passed"] is False
    spent = kit.Run(at, budget=0.0)
    assert "left out" in spent.one(kit.PARTS[1])["reason"]
    spent.one(kit.named("verdict"))
    assert ran == ["full-calibrate", "verdict"]


def test_medium_parts_take_the_medium_shape(at: Any) -> None:
    run = kit.Run(at)
    assert run.kit_of(kit.named("medium-ort-float16")).shape == "medium"
    assert run.kit_of(kit.named("full-ort-float16")).shape == "chatglm2-6b"
    tiny = kit.Run(replace(at, shape="tiny"))
    assert tiny.kit_of(kit.named("medium-ort-float16")).shape == "tiny"


def test_the_disk_holds_one_checkpoint(at: Any) -> None:
    """One of the kit's own goes for the next; one that was put there stays."""
    tiny = replace(at, shape="tiny")
    own = at.work / "chatglm2-6b"
    own.mkdir(parents=True)
    (own / "config.json").write_text("{}")
    first = full_size.full_checkpoint(tiny)
    second = full_size.full_checkpoint(tiny, full_size.NATIVE)
    assert (first.name, first.exists(), second.name) == ("tiny", False, "tiny-native")
    assert (second / "model.safetensors.index.json").is_file()
    assert full_size.full_checkpoint(at) == own
    assert sorted(path.name for path in at.work.iterdir()) == ["chatglm2-6b", "tiny-native"]


def test_a_run_that_is_ended_writes_what_it_knows(at: Any, tmp_path: Path) -> None:
    """By SIGTERM, as the limit of a call ends it, while a probe waits for a Python that does not answer."""
    python, started = silent_python(tmp_path)
    words = ["--on-cpu", "--work", str(at.work), "--out", str(at.out), "tensorrt-8.6"]
    environment = os.environ | {"PATH": f"{python.parent}:{os.environ['PATH']}"}
    ended_by_sigterm([sys.executable, str(HOME / "kit.py"), *words], started, environment)
    found = record.read(at.out, "probe-tensorrt-8.6")
    assert (found["passed"], found["error"]) == (False, "cut off with the whole run")
    deadline = time.monotonic() + 60
    while alive(int(started.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.05)
