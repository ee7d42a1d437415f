"""What ``-v`` says of what a verb read and decided, beside what is there; without it none of that is said."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import onnxruntime
import pytest
from click.testing import CliRunner, Result

from glm_export import api
from glm_export.artifacts.open import view_of
from glm_export.artifacts.program import WEIGHTS, OnnxProgram
from glm_export.calibration.layerwise import calibrate as walk
from glm_export.cli import cli
from glm_export.embedded import FOLDERS
from glm_export.sessions.onnxruntime import packed
from glm_export.store import opening
from glm_export.store.cache import CACHE_VARIABLE
from glm_export.terminal.frame.saying import Remarks
from tests.helpers.folder_server import files_of, serving_folder

POEM = "千山鸟飞绝，万径人踪灭。"


@pytest.fixture(autouse=True)
def remarks() -> Iterator[None]:
    """As ``main`` shows the log."""
    logger, handler = logging.getLogger("glm_export"), Remarks()
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)


def run(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)


def said(result: Result, level: str = "info") -> dict[str, str]:
    """Lines of the log by the module's last name, one behind the other."""
    found: dict[str, str] = {}
    for name, line in re.findall(rf"^{level} glm_export\.([\w.]+): (.*)$", result.stderr, re.MULTILINE):
        key = name.split(".")[-1]
        found[key] = f"{found.get(key, '')}{line}\n"
    return found


def test_export_says_what_it_reads_writes_and_how_long_stages_took(tmp_path: Path) -> None:
    result = run("export", "demo", "--out", tmp_path / "out", "-v")
    lines, weights = said(result), FOLDERS["demo"] / "model.safetensors"
    assert f"family chatglm2, 4 layers, {weights.stat().st_size} bytes of weights in 1 files" in lines["checkpoint"]
    assert "to onnx in float32" in lines["export"]
    assert re.search(r"^graph: \d+\.\d\d s$", lines["export"], re.MULTILINE)
    assert said(run("export", "demo", "--out", tmp_path / "quiet")) == {}
    files = said(run("-vv", "inspect", "demo"), "debug")["checkpoint"]
    assert f"{weights}: {weights.stat().st_size} bytes, mapped" in files


def test_a_session_says_runtime_providers_threads_and_whether_weights_are_packed(
    demo_program: OnnxProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    folder, words = demo_program.folder, ("generate", demo_program.folder, "--prompt", POEM, "-v")
    lines = said(run(*words))
    assert f"{folder}: by ONNX Runtime {onnxruntime.__version__}, providers " in lines["runtime"]
    assert f"{demo_program.manifest['sizes'][WEIGHTS]} bytes of weights" in lines["packed"]
    version = re.escape(onnxruntime.__version__)
    assert re.search(rf"loaded in \d+\.\d\d s by onnxruntime {version} on cpu with", lines["load"])
    monkeypatch.setattr(packed, "LEAST_BYTES", 0)
    kept = [said(run(*words)).get("packed", "") for _ in range(3)]
    assert ["and kept in" in kept[1], "mapped as it was packed" in kept[2]] == [True, True], kept
    assert kept[0] == ""
    assert "loaded in" in said(run("generate", "demo", "--prompt", POEM, "-v"))["load"]


def test_calibrate_says_what_it_goes_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("calibrate", "demo", "--corpus", "poems", "--max-samples", 1, "--out", tmp_path / "ranges", "-v")
    through = walk._through_layer

    def stopped(*given: object) -> object:
        if given[2] == 2:
            raise KeyboardInterrupt
        return through(*given)

    monkeypatch.setattr(walk, "_through_layer", stopped)
    first = run(*words)
    assert first.exit_code == 3
    assert "1 rows" in said(first)["calibrate"]
    monkeypatch.setattr(walk, "_through_layer", through)
    assert "gone on from, 2 layers are done" in said(run(*words))["resume"]


def test_a_folder_behind_a_url_says_what_is_fetched_and_what_is_not(
    demo_program: OnnxProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(opening, "_opened", {})
    files = files_of(demo_program.folder)
    with serving_folder(files) as server, caplog.at_level(logging.INFO, "glm_export"):
        view = view_of(server.url)
        assert f"{len(view.files)} files, " in caplog.text
        monkeypatch.setattr(opening, "_opened", {})
        view_of(f"{server.url}#sha256={view.pin}")
        assert "the store is not asked" in caplog.text


def test_check_quality_bench_and_verify_say_what_they_compare_and_read(demo_program: OnnxProgram) -> None:
    folder = demo_program.folder
    told = said(run("check", folder, "--against", "demo", "-v"))["runners"]
    assert "cases, each asked of pytorch, onnxruntime" in told
    text = ("--corpus", "poems", "--max-samples", 1)
    read = api.open_corpus("poems", api.open_checkpoint("demo"), max_samples=1)
    told = said(run("quality", folder, "--against", "demo", *text, "-v"))["judged"]
    assert told == f"1 rows, {read.tokens} tokens of corpus {read.name}: whole models\n"
    short = ("--rounds", 1, "--prompt-tokens", 4, "--new-tokens", 1, "--context", 4)
    assert said(run("bench", folder, *short, "-v"))["bench"].count("-m glm_export.performance.measure") == 3
    assert "files are hashed" in said(run("verify", folder, "-v"))["digests"]
