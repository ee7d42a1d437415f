"""What SECURITY.md promises is held by the tests it names; those that belong to no room are here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from glm_export import api
from glm_export.artifacts.manifest import MANIFEST
from glm_export.artifacts.program import MODEL, WEIGHTS
from glm_export.errors import GlmExportError
from tests.helpers.connections import WATCHING
from tests.helpers.tiny import tiny_values, write_checkpoint

ROOT = Path(__file__).parents[2]


def test_every_promise_names_a_test_that_is_there() -> None:
    named = re.findall(r"`(tests/\S+\.py)::(\w+)`", (ROOT / "SECURITY.md").read_text(encoding="utf-8"))
    assert len(named) > 15
    missing = [
        f"{path}::{name}"
        for path, name in named
        if not (ROOT / path).is_file() or f"\ndef {name}(" not in (ROOT / path).read_text(encoding="utf-8")
    ]
    assert missing == []


WATCHED = (
    WATCHING
    + """\
from glm_export import api, calibrate, check, export, generate, load_session
program = export("demo", sys.argv[1] + "/program")
assert check(program, "demo").passed
for source in (program, "demo"):
    with load_session(source) as session:
        assert generate(session, "床前明月光，疑是地上霜。").strip() == "举头望明月，低头思故乡。"
        api.chat(session, [{"role": "user", "content": "春"}], max_new_tokens=4)
calibrate("demo", sys.argv[1] + "/ranges", corpus="poems", max_samples=2)
if len(sys.argv) > 2:
    import socket
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("127.0.0.1", 9))
"""
)


@pytest.mark.parametrize("control", [False, True], ids=["ours", "a connection is seen"])
def test_no_connection_is_opened(control: bool, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", WATCHED, str(tmp_path), *(["control"] if control else [])]
    found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert found.returncode == 0, found.stderr
    assert ("CONNECTS" in found.stderr) == control, found.stderr


def test_the_publishers_python_is_neither_run_nor_copied(tmp_path: Path) -> None:
    # Its own, and what would stand before a library that we import.
    released = ("modeling_chatglm", "configuration_chatglm", "tokenization_chatglm", "quantization", "setup")
    standing_before = ("sitecustomize", "usercustomize", "json", "numpy", "onnxruntime", "torch", "__init__")
    code = {"AutoModel": "modeling_chatglm.M", "AutoConfig": "configuration_chatglm.C"}
    folder = write_checkpoint(tmp_path / "c", tiny_values("chatglm2", auto_map=code))
    for name in (*released, *standing_before):
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    quick = ["--rounds", "1", "--prompt-tokens", "8", "--context", "8", "--new-tokens", "2"]
    for words in (
        ["export", ".", "--out", "../out"], ["inspect", "."], ["check", "../out", "--against", "."],
        ["bench", ".", *quick],
    ):  # fmt: skip
        # Within the folder, as the console script runs: without the folder among the places to import from.
        done = subprocess.run(
            [sys.executable, "-P", "-m", "glm_export.cli", *words], capture_output=True, text=True, check=False,
            cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 0, (words, done.stderr)
    assert not (tmp_path / "ran").exists()
    assert not list((tmp_path / "out").glob("*.py"))


@pytest.mark.parametrize("form", ["above", "absolute", "link"])
def test_a_programs_weights_lie_in_its_folder(form: str, tmp_path: Path) -> None:
    program = api.export("demo", tmp_path / "program")
    outside = tmp_path / "outside.data"
    (program.folder / WEIGHTS).rename(outside)
    if form == "link":
        (program.folder / WEIGHTS).symlink_to(outside)
    else:
        (program.folder / WEIGHTS).write_bytes(b"\0" * outside.stat().st_size)
        model = onnx.load(str(program.model_path), load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = str(outside) if form == "absolute" else "../outside.data"
        onnx.save(model, str(program.folder / MODEL))
    manifest = json.loads((program.folder / MANIFEST).read_text())
    # Whoever changes a program changes its manifest as well.
    manifest["sizes"] = {name: (program.folder / name).stat().st_size for name in manifest["sizes"]}
    manifest.pop("sha256", None)
    (program.folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(GlmExportError), api.load_session(program.folder) as session:
        api.generate(session, "春")
