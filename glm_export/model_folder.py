"""Files of a model folder, read without leaving it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from glm_export.errors import CheckpointError

HASH_BLOCK_BYTES = 1 << 24


def inside(folder: Path, name: str) -> Path:
    """The file ``name`` of a model folder, refused when it lies elsewhere.

    Links are followed only within the folder, or into the ``blobs`` of a Hugging Face cache that the folder is a
    snapshot of.

    Raises:
        CheckpointError: the name has a path in it, or the file is a link to elsewhere.
    """
    if Path(name).name != name:
        raise CheckpointError(
            f"{name!r} is not a plain file name in {folder}; refused, since it could lead out of the folder"
        )
    path = folder / name
    real, home = path.resolve(), folder.resolve()
    allowed = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    if real.parent not in allowed:
        raise CheckpointError(
            f"{path} links to {real}, outside the model folder; refused: copy the file in if it belongs there"
        )
    return path


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Parse a JSON object of the folder.

    Raises:
        CheckpointError: missing, unreadable or not an object.
    """
    path = inside(folder, name)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; a model folder needs it") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} should hold a JSON object, found {type(values).__name__}")
    return values


def file_sha256(path: Path, advance: Callable[[int], None] = lambda _: None) -> str:
    """sha256 of a file in hexadecimal, as model hubs show it."""
    digest = hashlib.sha256()
    block = memoryview(bytearray(HASH_BLOCK_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
            advance(count)
    return digest.hexdigest()
