"""Folders of ours that a test changed, and whose manifest takes the change for its own."""

from __future__ import annotations

import json
from pathlib import Path

from glm_export.artifacts.manifest import MANIFEST, recorded_files, write_json


def recorded_again(folder: Path, name: str = MANIFEST) -> None:
    """Sizes and hashes of the files as they are now."""
    manifest = json.loads((folder / name).read_text(encoding="utf-8"))
    (folder / name).unlink()
    write_json(folder / name, manifest | recorded_files(folder))
