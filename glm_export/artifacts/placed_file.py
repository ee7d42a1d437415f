"""A file of one folder in another: small ones are copied, large ones can be hard links, which take no room."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from glm_export.artifacts.manifest import QUICK_BYTES


def place(source: Path, target: Path, *, link: bool) -> int:
    """Link or copy a file; returns the bytes that were linked.

    Small files are copied always: some of them are written anew in their folder, as a manifest is when it is signed.

    Args:
        source: the file; a link stands for what it leads to.
        target: where to; folders are made.
        link: try a hard link; where the disk has none, or it is another one, the file is copied.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    real = source.resolve()
    size = real.stat().st_size
    if link and size > QUICK_BYTES:
        try:
            os.link(real, target)
        except OSError:  # another disk, or one without links
            pass
        else:
            return size
    shutil.copyfile(real, target)
    return 0


def needed_for(out: Path, sources: list[Path], *, link: bool) -> int:
    """Bytes that copies of these files would take on the disk of ``out``, those that can be links left out."""
    home = next(parent for parent in out.absolute().parents if parent.exists())
    copied = [path for path in sources if not link or home.stat().st_dev != path.stat().st_dev]
    return sum(path.stat().st_size for path in copied)
