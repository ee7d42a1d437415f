"""The same input and versions give the same bytes: in other processes, folders and umasks, by another hash seed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

TIMES = {"created", "seconds"}
"""What a manifest says of the run alone."""
PROGRAMS = [
    ("demo", "ort", "int8-token"),
    ("demo", "tensorrt", "int8-weights"),
    ("demo-glm", "portable", None),
]


def exported(folder: Path, source: str, dialect: str, recipe: str | None, *, umask: int, seed: str) -> Path:
    folder.mkdir()
    out = folder / "program"
    words = ["export", source, "--out", str(out), "--dialect", dialect, *(["--recipe", recipe] if recipe else [])]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONHASHSEED": seed}
    command = [sys.executable, "-W", "ignore", "-m", "glm_export.cli", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, umask=umask)
    assert done.returncode == 0, done.stderr
    return out


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}


def told(folder: Path) -> dict[str, Any]:
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest) >= TIMES
    return {name: value for name, value in manifest.items() if name not in TIMES}


@pytest.mark.parametrize(("source", "dialect", "recipe"), PROGRAMS)
def test_two_processes_write_the_same_bytes(source: str, dialect: str, recipe: str | None, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(exported, tmp_path / "a", source, dialect, recipe, umask=0o022, seed="1")
        other = pool.submit(exported, tmp_path / "elsewhere", source, dialect, recipe, umask=0o077, seed="2")
        first, second = one.result(), other.result()
    assert bytes_of(first) == bytes_of(second)
    assert told(first) == told(second)
    # Both umasks were in force.
    assert (first / "model.onnx").stat().st_mode & 0o777 != (second / "model.onnx").stat().st_mode & 0o777
