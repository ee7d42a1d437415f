"""What the README says, done."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

from glm_export import api, families
from glm_export.calibration import recipes
from glm_export.cli import cli
from glm_export.graphs import dialects
from glm_export.machine.gpu import has_driver
from tests.helpers.golden_data import Golden

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_python_examples_run(tmp_path: Path) -> None:
    examples = blocks("python")
    assert len(examples) == 3
    script = "\n".join(examples)
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    by_session, by_hand = result.stdout.strip().split("\n\n")[0], result.stdout.strip().splitlines()
    assert by_session.splitlines()[0] == by_hand[-1] == "孤舟蓑笠翁，独钓寒江雪。"


def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the embedded model in place of ChatGLM2-6B, and on the golden GLM."""
    monkeypatch.chdir(tmp_path)
    api.export(Golden("glm").folder, "glm-onnx")
    lines = [line[2:] for block in blocks("console") for line in block.splitlines() if line.startswith("$ glm-export")]
    assert len(lines) == 21
    request = {"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": {"prompt": "春眠不觉晓，"}}
    (tmp_path / "requests.jsonl").write_text(json.dumps(request))
    for line in lines:
        arguments = shlex.split(line.replace("THUDM/chatglm2-6b", "demo"))[1:]
        if arguments[0] == "build" and find_spec("tensorrt_rtx_bindings") is None:
            continue  # it has wheels for Linux on x86-64 only
        if arguments[0] == "deploy" and find_spec("tritonclient") is None:
            continue  # of older dependencies than a lock has; the Makefile installs it without
        if arguments[0] == "serve":
            continue  # it does not end by itself; tests/serving starts it
        result = CliRunner().invoke(cli, arguments, input="", catch_exceptions=False)
        # Engines run where there is a GPU; elsewhere these verbs say that.
        runs = has_driver() or not arguments[-1].endswith("-engine") or arguments[0] == "build"
        assert result.exit_code == (0 if runs else 3), (line, result.output)


@pytest.mark.parametrize(
    ("section", "room"),
    [("## Models", families), ("## Dialects", dialects), ("## Quantized", recipes)],
    ids=["families", "dialects", "recipes"],
)
def test_tables_are_complete(section: str, room: ModuleType) -> None:
    table = README.split(section)[1].split("\n## ")[0]
    assert sorted(re.findall(r"^\| `([\w-]+)`", table, flags=re.MULTILINE)) == room.names()


def test_links_lead_somewhere() -> None:
    root = Path(__file__).parents[2]
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (root / target).exists(), target
