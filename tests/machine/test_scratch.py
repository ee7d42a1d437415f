"""Temporary folders end with their process, however it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import pytest

from glm_export.machine.scratch import LOCK, ScratchFolder

HOLDER = """
import signal
from glm_export.machine.scratch import ScratchFolder
folder = ScratchFolder()
(folder.path / "twin").touch()
print(folder.path, flush=True)
signal.pause()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def test_it_goes_when_it_is_left(temporary: Path) -> None:
    with closing(ScratchFolder()) as folder:
        assert folder.path.parent == temporary
        (folder.path / "twin").touch()
    assert list(temporary.iterdir()) == []
    folder.close()
    forgotten = ScratchFolder()
    del forgotten
    assert list(temporary.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="the lock is the POSIX systems'")
def test_what_a_killed_process_left_goes_with_the_next(temporary: Path) -> None:
    """And not before: one that is in use stays, as does what is none of them."""
    holder = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    left = Path(holder.stdout.readline().strip())
    (temporary / "glm-export-mine").mkdir()
    (temporary / "glm-export-elsewhere").symlink_to(temporary / "glm-export-mine")
    with closing(ScratchFolder()):
        assert (left / "twin").exists()
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert (left / LOCK).exists()
    ScratchFolder().close()
    assert sorted(path.name for path in temporary.iterdir()) == ["glm-export-elsewhere", "glm-export-mine"]
