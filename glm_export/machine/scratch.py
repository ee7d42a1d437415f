"""A temporary folder that goes with its process: what one that was killed left is removed by the next."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import weakref
from pathlib import Path

if sys.platform != "win32":
    import fcntl

PREFIX = "glm-export-"
LOCK = ".lock"
"""Held while the folder is in use; the system gives it up however the process ends."""


class ScratchFolder:
    """A folder among the system's temporary ones, removed by :meth:`close`, with its last user or with the process.

    ``path``: where it lies.
    """

    def __init__(self) -> None:
        remove_abandoned()
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        # Under another name until it is held: nobody may take it for that of a process that has ended.
        unheld = self.path / f"{LOCK}-unheld"
        lock = os.open(unheld, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        self._finalizer = weakref.finalize(self, _remove, self.path, lock)
        if sys.platform != "win32":
            fcntl.flock(lock, fcntl.LOCK_EX)
            unheld.rename(self.path / LOCK)

    def close(self) -> None:
        """Remove it; once is enough."""
        self._finalizer()


def _remove(folder: Path, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)


def remove_abandoned() -> None:
    """Remove folders of this user whose process has ended."""
    if sys.platform == "win32":
        return
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
                continue
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:  # gone meanwhile, or none of these folders
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:  # in use
            continue
        finally:
            os.close(lock)
