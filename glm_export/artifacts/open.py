"""What a folder is."""

from __future__ import annotations

import sys
from pathlib import Path

if sys.platform != "win32":
    pass

from glm_export.artifacts.manifest import ENGINE_MANIFEST, MANIFEST


def is_program(folder: Path) -> bool:
    """Whether a folder was written by glm-export."""
    return (folder / MANIFEST).is_file()


def is_engine(folder: Path) -> bool:
    """Whether a folder holds an engine that glm-export built."""
    return (folder / ENGINE_MANIFEST).is_file()
