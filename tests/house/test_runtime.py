"""The distribution without PyTorch: the same package, and what of it works there."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from glm_export.artifacts.program import OnnxProgram
from glm_export.cli import WHOLE_ALONE

ROOT = Path(__file__).parents[2]


def project(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))


def test_it_is_the_same_package_with_fewer_dependencies() -> None:
    whole, part = project(ROOT), project(ROOT / "runtime")
    assert (ROOT / "runtime/glm_export").resolve() == ROOT / "glm_export"
    for key in ("version", "requires-python", "license", "scripts"):
        assert part["project"][key] == whole["project"][key], key
    assert part["tool"]["setuptools"]["package-data"] == whole["tool"]["setuptools"]["package-data"]
    left_out = set(whole["project"]["dependencies"]) - set(part["project"]["dependencies"])
    assert set(part["project"]["dependencies"]) < set(whole["project"]["dependencies"])
    named = {line.split(">")[0].replace("-", "_") for line in left_out}
    assert named == WHOLE_ALONE
    extras = whole["project"]["optional-dependencies"]
    assert all(extras[name] == wanted for name, wanted in part["project"]["optional-dependencies"].items())


def without_them(*words: str, code: int) -> subprocess.CompletedProcess[str]:
    """A verb in a process where they cannot be imported."""
    script = f"""
import sys
for name in {sorted(WHOLE_ALONE)!r}:
    sys.modules[name] = None
from glm_export.cli import main
sys.argv = ["glm-export", *{list(words)!r}]
main()
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == code, result.stdout + result.stderr
    return result


@pytest.mark.parametrize("verb", [("generate",), ("generate", "--stream", "--speculate")], ids=["plain", "guesses"])
def test_exported_folders_run(verb: tuple[str, ...], demo_program: OnnxProgram) -> None:
    found = without_them(verb[0], str(demo_program.folder), "--prompt", "床前明月光，", *verb[1:], code=0)
    assert found.stdout.startswith("疑是地上霜。")


def test_the_other_verbs_of_running_run(demo_program: OnnxProgram, tmp_path: Path) -> None:
    folder = str(demo_program.folder)
    assert "onnxruntime" in without_them("doctor", folder, code=0).stdout
    without_them("verify", folder, code=1)
    request = '{"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": {"prompt": "春眠不觉晓，"}}\n'
    (tmp_path / "in.jsonl").write_text(request, encoding="utf-8")
    without_them("batch", folder, "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "o"), code=0)
    assert "处处闻啼鸟" in (tmp_path / "o").read_text(encoding="utf-8")


@pytest.mark.parametrize("words", [("export", "demo", "--out", "new"), ("generate", "demo", "--prompt", "a")])
def test_what_takes_them_says_so(words: tuple[str, ...]) -> None:
    said = without_them(*words, code=3).stderr
    assert said.startswith("Error: this takes torch, which glm-export-runtime leaves out: ")
    assert said.count("\n") == 1
