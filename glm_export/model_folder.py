"""Files of a model folder, read without leaving it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from glm_export.errors import CheckpointError

HASH_BLOCK_BYTES = 1 << 24
HUB_PREFIX = "models--"
"""How a model's folder in a Hugging Face cache begins: ``models--ORG--NAME``."""
# Pointers are 123 to 135 bytes; the specification allows 1024.
LFS_POINTER_BYTES, LFS_MAGIC = 1024, b"version https://git-lfs"


def inside(folder: Path, name: str) -> Path:
    """The file ``name`` of a model folder, refused when it leads elsewhere unasked.

    In a snapshot of a Hugging Face cache links lead to the cache's ``blobs`` and nowhere else. In a folder of one's own
    they may lead to any file of the same ending (``ln -s``), or into such a cache (``hf download --local-dir``).

    Raises:
        CheckpointError: the name has a path in it, a link leads where none may or nowhere, or the file is the pointer
            that git leaves where Git LFS has not fetched.
    """
    if Path(name).name != name or name in (".", ".."):
        raise CheckpointError(
            f"{name!r} is not a plain file name in {folder}; refused, since it could lead out of the folder"
        )
    path = folder / name
    if path.is_symlink():
        _require_allowed_link(path, folder.resolve())
    if path.is_file() and is_lfs_pointer(path):
        raise CheckpointError(
            f"{path} is a pointer that stands for the real file, which Git LFS has not fetched; run 'git lfs pull' in "
            f"{folder}"
        )
    return path


def _require_allowed_link(path: Path, home: Path) -> None:
    real = path.resolve()
    if not real.exists():
        raise CheckpointError(f"{path} links to {real}, which is not there; download it again, or mend the link")
    snapshot = home.parent.name == "snapshots" and home.parent.parent.name.startswith(HUB_PREFIX)
    blobs = real.parent.name == "blobs" and real.parent.parent.name.startswith(HUB_PREFIX)
    if real.parent == home or (blobs and (not snapshot or real.parent.parent == home.parent.parent)):
        return
    if snapshot:
        raise CheckpointError(
            f"{path} links to {real}, outside its Hugging Face cache; refused: download it again, or copy the snapshot "
            "to a folder of its own with the file that belongs there"
        )
    if real.suffix != path.suffix:
        raise CheckpointError(
            f"{path} links to {real}, outside the model folder and not a {path.suffix} file; refused: copy the file in "
            "if it belongs there"
        )


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file is a few lines of text that stand for one Git LFS keeps elsewhere."""
    if path.stat().st_size > LFS_POINTER_BYTES:
        return False
    with path.open("rb") as file:
        return file.read(len(LFS_MAGIC)) == LFS_MAGIC


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
