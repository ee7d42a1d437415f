"""A fixed share of the kills; and that what they are there for is noticed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from glm_export.artifacts.manifest import MANIFEST, recorded_files, write_json
from tests.attacks import kills

ROOT = Path(__file__).parents[2]
PLANTED = """
import sys
from glm_export.artifacts import output_folder
from tests.attacks import kills

output_folder._remove_leftovers = lambda _: None
kills.AIMED = {"the new folder takes the name": (output_folder, "take_name")}
sys.exit(0 if kills.main(2, 1, ["export"]) else 1)
"""


def test_a_share_of_the_kills_loses_nothing() -> None:
    command = [sys.executable, str(Path(kills.__file__)), "--count", "8", "--only", "export", "--only", "calibrate"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.endswith("8 kills, 0 violations\n")


def test_control_what_is_left_behind_is_noticed() -> None:
    found = subprocess.run([sys.executable, "-c", PLANTED], capture_output=True, text=True, check=False, cwd=ROOT)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "the second run was refused" in found.stdout


def test_control_a_folder_that_is_not_whole_is_noticed(tmp_path: Path) -> None:
    assert "is of no kind" in kills.damage(tmp_path)
    (tmp_path / "model.onnx").write_text("graph")
    write_json(tmp_path / MANIFEST, {"format": 1} | recorded_files(tmp_path))
    assert kills.damage(tmp_path) == ""
    (tmp_path / "model.onnx").write_text("grapH")
    assert "is damaged or was changed" in kills.damage(tmp_path)
