"""The card in every exported folder: what it says is so, and its snippets run in that very folder."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from glm_export import api, certify, verify
from glm_export.artifacts.manifest import CARD
from glm_export.artifacts.program import OnnxProgram
from glm_export.exporter.card.loaders import GENAI, OPTIMUM, TRANSFORMERS_JS
from tests.exporter.test_openvino import APART, HERE
from tests.helpers.golden_data import Golden

MODULES = {"onnxruntime_genai": "onnxruntime-genai", "openvino": "OpenVINO"}
LINE = "疑是地上霜。\n举头望明月，"


def head_of(folder: Path) -> dict[str, object]:
    yaml = pytest.importorskip("yaml")
    head: dict[str, object] = yaml.safe_load((folder / CARD).read_text(encoding="utf-8").split("---\n")[1])
    return head


def snippets(folder: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (folder / CARD).read_text(encoding="utf-8"), flags=re.DOTALL)


def done(snippet: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a snippet prints in its folder; OpenVINO, which stands apart, in a process of its own."""
    if "import openvino" in snippet:
        if not HERE and not (APART / "openvino").is_dir():
            pytest.skip("OpenVINO is not installed")
        environment = os.environ | ({} if HERE else {"PYTHONPATH": str(APART)})
        run = subprocess.run(
            [sys.executable, "-c", snippet], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stderr[-2000:]
        return run.stdout
    if "onnxruntime_genai" in snippet:
        genai = pytest.importorskip("onnxruntime_genai", exc_type=ImportError)
        genai.disable_telemetry_events()
    monkeypatch.chdir(folder)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(snippet, CARD, "exec"), {"__name__": "__main__"})
    return printed.getvalue()


def exported_to(out: Path, source: str | Path, dialect: str, **options: object) -> OnnxProgram:
    if options.get("recipe") == "fp8":
        options["ranges"] = api.calibrate(source, out.parent / "ranges", corpus="poems", max_samples=4)
    return api.export(source, out, dialect=dialect, **options)


@pytest.mark.parametrize(
    ("dialect", "options", "named"),
    [
        ("onnx", {}, ["glm_export", "onnxruntime_genai", "optimum"]),
        ("ort", {}, ["glm_export", "onnxruntime_genai", "optimum"]),
        ("ort", {"logits": "recent"}, ["glm_export", "optimum", "onnxruntime"]),
        ("onnx", {"recipe": "fp8"}, ["glm_export", "onnxruntime_genai", "optimum"]),
        ("tensorrt", {"max_length": 64}, ["glm_export", "onnxruntime"]),
    ],
)
def test_snippets_of_a_model_that_chats(
    dialect: str, options: dict[str, object], named: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = exported_to(tmp_path / "out", "demo", dialect, **options)
    found = snippets(program.folder)
    modules = ("glm_export", "onnxruntime_genai", "optimum", "onnxruntime")
    assert [next(one for one in modules if re.search(rf"(import|from) {one}\b", text)) for text in found] == named
    printed = dict(zip(named, (done(text, program.folder, monkeypatch) for text in found), strict=True))
    assert printed["glm_export"].startswith(LINE)
    if "optimum" in printed:
        assert (
            printed["optimum"].strip().splitlines()[-2:]
            == LINE.split("\n")[:1] + printed["glm_export"].split("\n")[1:2]
        )
    if dialect == "tensorrt":
        with api.load_session(program) as session:
            logits = session.prefill(session.feeds([session.prompt([5, 6, 7, 8])]))
        assert printed["onnxruntime"].split()[-1] == str(logits[0, -1].argmax())
    elif "onnxruntime" in printed:
        assert printed["onnxruntime"].startswith(LINE)
    if "onnxruntime_genai" in printed:
        messages: list[dict[str, str]] = []
        with api.load_session(program) as session:
            for question in ("你好", "床前明月光，"):
                messages.append({"role": "user", "content": question})
                told = api.chat(session, messages, max_new_tokens=16)
                messages.append({"role": "assistant", "content": told})
        assert printed["onnxruntime_genai"].strip() == "\n".join(one["content"] for one in messages[1::2]).strip()


@pytest.mark.parametrize(("name", "dialect"), [("glm", "onnx"), ("chatglm", "ort"), ("glm_hf", "portable")])
def test_snippets_of_calls(
    name: str, dialect: str, exported: Callable[[str], OnnxProgram], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefix families, and one without a tokenizer: two runtimes say the same of one call."""
    program = (
        exported(name) if dialect == "onnx" else api.export(Golden(name).folder, tmp_path / "out", dialect=dialect)
    )
    ours, *calls = snippets(program.folder)
    assert done(ours, program.folder, monkeypatch).strip()
    assert [re.findall(r"^import (\w+)$", text, flags=re.MULTILINE)[0] for text in calls] == ["openvino", "onnxruntime"]
    first, second = (done(text, program.folder, monkeypatch) for text in calls)
    assert first == second
    assert int(second.split()[-1]) > 0


def test_what_it_says(exported: Callable[[str], OnnxProgram]) -> None:
    folder = exported("glm4_remote").folder
    card, manifest = (folder / CARD).read_text(encoding="utf-8"), json.loads((folder / "manifest.json").read_text())
    assert head_of(folder) == {
        "library_name": "onnx", "pipeline_tag": "text-generation",
        "tags": ["onnx", "onnxruntime", "glm-export", "glm4_remote"],
    }  # fmt: skip
    assert all(f"`{name}` {sha256}" in card for name, sha256 in manifest["source_sha256"].items())
    assert f"`model.onnx.data` {manifest['sizes']['model.onnx.data']:,} bytes" in card
    assert manifest["sizes"][CARD] == len(card.encode())
    assert CARD in manifest["sha256"]
    for loader in (OPTIMUM, GENAI, TRANSFORMERS_JS):
        assert f"| {loader.name} | {loader.tried} | yes |" in card
    assert "[missing]" not in card
    assert str(folder) not in card


@pytest.mark.parametrize("text", ["Our own words.\n", None], ids=["rewritten", "removed"])
def test_whoever_publishes_a_folder_may_rewrite_its_card(text: str | None, tmp_path: Path) -> None:
    program = api.export("demo", tmp_path / "out")
    if text is None:
        (program.folder / CARD).unlink()
    else:
        (program.folder / CARD).write_text(text)
    api.load_program(program.folder).require_undamaged()
    certify(program.folder, "demo")
    assert verify(program.folder).holds
    assert text is None or (program.folder / CARD).read_text() == text
    # It is ours all the same: what --force replaces.
    assert (api.export("demo", program.folder, force=True).folder / CARD).read_text().startswith("---\n")


def test_license_and_base_are_those_the_source_says(chatglm2_copy: Path, tmp_path: Path) -> None:
    """A card of a checkpoint is somebody's text: what looks like no license is left out, and so is what lies beside."""
    snapshot = tmp_path / "models--THUDM--chatglm2-6b" / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    chatglm2_copy.rename(snapshot)
    lines = [
        "---",
        "license: other",
        "license_name: glm-4",
        "license_link: https://example.org/a",
        "---",
        "license: mit",
    ]
    (snapshot / CARD).write_text("\n".join(lines))
    head = head_of(api.export(snapshot, tmp_path / "a", recipe="int8-weights").folder)
    assert {key: head[key] for key in head if "license" in key or "base" in key} == {
        "license": "other", "license_name": "glm-4", "license_link": "https://example.org/a",
        "base_model": "THUDM/chatglm2-6b", "base_model_relation": "quantized",
    }  # fmt: skip
    for hostile in (
        "---\nlicense: [x]\n---\n",
        "---\nlicense: a b\n---\n",
        "license: mit\n",
        "---\nlicense: \x00\n---\n",
    ):
        (snapshot / CARD).write_text(hostile)
        assert "license" not in head_of(api.export(snapshot, tmp_path / "b", force=True).folder)
