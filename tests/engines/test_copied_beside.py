"""Which files of a program's folder an engine's takes along."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from glm_export.artifacts.program import OnnxProgram
from glm_export.engines import builder
from glm_export.errors import InputError


def test_what_else_lies_in_the_programs_folder_is_not_taken_along(
    exported: Callable[[str], OnnxProgram], tmp_path: Path
) -> None:
    """A file, and a link in place of one that was written."""
    program = exported("chatglm2")
    folder, into = tmp_path / "program", tmp_path / "into"
    shutil.copytree(program.folder, folder)
    into.mkdir()
    (folder / "letters.txt").touch()
    builder._copy_beside(replace(program, folder=folder), into, stripped=False)
    name = "generation_config.json"
    assert (into / name).is_file()
    assert not (into / "letters.txt").exists()
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(InputError, match=rf"{name} is a link"):
        builder._copy_beside(replace(program, folder=folder), into, stripped=False)
