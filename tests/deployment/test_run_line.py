"""`inspect --polygraphy`: the line runs in Polygraphy itself, in every dialect; without its shapes it does not."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.cli import cli
from glm_export.deployment.run_line import run_line
from glm_export.errors import InputError
from tests.helpers.golden_data import Golden


def polygraphy(line: str, *more: str) -> subprocess.CompletedProcess[str]:
    word, *words = shlex.split(line)
    assert word == "polygraphy"
    command = [str(Path(sys.executable).with_name(word)), *words, *more]
    return subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("source", "dialect", "options"),
    [
        ("demo", "onnx", {}), ("demo", "ort", {}), ("demo", "tensorrt", {"max_length": 32}), ("glm", "portable", {}),
        ("chatglm", "ort", {}),
    ],
)  # fmt: skip
def test_the_line_runs(source: str, dialect: str, options: dict[str, int], tmp_path: Path) -> None:
    folder = tmp_path / "a program's"  # a name a shell would take apart
    api.export(source if source == "demo" else Golden(source).folder, folder, dialect=dialect, **options)
    told = CliRunner().invoke(cli, ["inspect", str(folder), "--polygraphy"])
    assert (told.exit_code, told.output.count("\n")) == (0, 1)
    done = polygraphy(told.output, "--validate")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "PASSED | Output: logits is valid" in done.stdout
    assert "NaN" not in done.stdout


def test_control_without_shapes_it_fails(demo_program: OnnxProgram) -> None:
    words = shlex.split(run_line(demo_program))
    assert polygraphy(shlex.join(words[: words.index("--input-shapes")])).returncode != 0


def test_what_polygraphy_cannot_run_is_said(tmp_path: Path) -> None:
    half = api.export("demo", tmp_path / "half", dtype="bfloat16")
    with pytest.raises(InputError, match="bfloat16, which Polygraphy's arrays"):
        run_line(half)
    ranges = api.calibrate("demo", tmp_path / "ranges", corpus="poems", max_samples=2)
    told = api.export("demo", tmp_path / "fp8", recipe="fp8", ranges=ranges)
    with pytest.raises(InputError, match=r"session\.disable_quant_qdq = 1, and Polygraphy tells it nothing"):
        run_line(told)
