"""ONNX Runtime reports to nobody: told so before it is imported, by whatever of ours is imported first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from glm_export.artifacts.program import OnnxProgram

SWITCH = "ORT_DISABLE_TELEMETRY"
SEEN_AT_IMPORT = f"""
import importlib, os, subprocess, sys

class Watch:
    seen = "onnxruntime was not imported"

    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            Watch.seen = os.environ.get({SWITCH!r})

sys.meta_path.insert(0, Watch())
importlib.import_module(sys.argv[1])
importlib.import_module("polygraphy.backend.onnxrt")
import onnxruntime
child = [sys.executable, "-c", "import os; print(os.environ.get({SWITCH!r}))"]
print(Watch.seen, subprocess.check_output(child, text=True).strip())
"""


def python(*arguments: str, **changes: str) -> str:
    """Standard output of a process in which the switch is not set, unless by ``changes``."""
    environment = {name: value for name, value in os.environ.items() if name != SWITCH} | changes
    return subprocess.run(
        [sys.executable, *arguments], check=True, text=True, env=environment, capture_output=True
    ).stdout


@pytest.mark.parametrize("module", ["glm_export", "glm_export.cli", "glm_export.api", "glm_export.proof.runners"])
def test_it_is_off_before_onnxruntime_is_imported_and_in_children(module: str) -> None:
    assert python("-c", SEEN_AT_IMPORT, module).split() == ["1", "1"]


def test_whoever_wants_it_has_it() -> None:
    assert python("-c", SEEN_AT_IMPORT, "glm_export", **{SWITCH: "0"}).split() == ["0", "0"]


def test_nothing_is_written_at_home_or_among_temporary_files(demo_program: OnnxProgram, tmp_path: Path) -> None:
    def written(name: str, *arguments: str) -> list[str]:
        home = tmp_path / name
        home.mkdir()
        places = {"HOME": home, "TMPDIR": home, "XDG_CACHE_HOME": home / ".cache", "XDG_STATE_HOME": home / ".state"}
        python(*arguments, **{variable: str(place) for variable, place in places.items()})
        return [str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()]

    generate = ("-m", "glm_export.cli", "generate", str(demo_program.folder), "--prompt", "床前明月光，")
    assert written("ours", *generate) == []
    # The control: what the same release writes when nobody tells it otherwise.
    if not written("plain", "-c", "import onnxruntime"):
        pytest.skip("this build of ONNX Runtime has no telemetry: it writes nothing when it is imported")
