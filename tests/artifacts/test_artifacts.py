"""Folders that are written whole, by one run at a time."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from glm_export.artifacts.output_folder import whole_folder
from glm_export.errors import InputError

HOLDER = """
import sys, time
from pathlib import Path
from glm_export.artifacts.output_folder import whole_folder
with whole_folder(Path(sys.argv[1])):
    print("holding", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the lock is the POSIX systems'")
def test_a_second_run_on_one_folder_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    """However it ends: one that was killed is not waited for, and what it left behind is replaced."""
    out = tmp_path / "out"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(out)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "holding\n"
    with pytest.raises(InputError, match=r"another run is writing .*out; wait for it"), whole_folder(out):
        pass
    assert (tmp_path / ".out.partial").is_dir()
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with whole_folder(out) as folder:
        (folder / "made").write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / "made").read_text() == "whole"


def test_what_fails_leaves_nothing_and_the_old_folder_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()
    with pytest.raises(RuntimeError, match="broken"), whole_folder(out):
        raise RuntimeError("broken")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / "old").exists()


def test_an_interrupt_while_the_folder_is_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Path.mkdir

    def interrupted(path: Path, *arguments: object, **options: object) -> None:
        made(path, *arguments, **options)
        if path.name == ".out.partial":
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "mkdir", interrupted)
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []
