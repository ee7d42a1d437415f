"""What the README says, done."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from glm_export import api, families
from glm_export.cli import cli
from tests.golden_data import Golden

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_python_examples_run(tmp_path: Path) -> None:
    examples = blocks("python")
    assert len(examples) == 2
    script = "\n".join(examples)
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().endswith("孤舟蓑笠翁，独钓寒江雪。")


def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the embedded model in place of ChatGLM2-6B, and on the golden GLM."""
    monkeypatch.chdir(tmp_path)
    api.export(Golden("glm").folder, "glm-onnx")
    lines = [line[2:] for block in blocks("console") for line in block.splitlines() if line.startswith("$ glm-export")]
    assert len(lines) == 7
    for line in lines:
        arguments = shlex.split(line.replace("THUDM/chatglm2-6b", "demo"))[1:]
        result = CliRunner().invoke(cli, arguments, input="", catch_exceptions=False)
        assert result.exit_code == 0, (line, result.output)


def test_families_table_is_complete() -> None:
    table = README.split("## Models")[1].split("##")[0]
    assert sorted(re.findall(r"^\| `(\w+)`", table, flags=re.MULTILINE)) == families.names()


def test_links_lead_somewhere() -> None:
    root = Path(__file__).parent.parent
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (root / target).exists(), target
