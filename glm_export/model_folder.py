"""Files of a model folder, read without leaving it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Never

from glm_export.errors import CheckpointError, shown

HASH_BLOCK_BYTES = 1 << 24
HUB_PREFIX = "models--"
"""How a model's folder in a Hugging Face cache begins: ``models--ORG--NAME``."""
# Pointers are 123 to 135 bytes; the specification allows 1024.
LFS_POINTER_BYTES, LFS_MAGIC = 1024, b"version https://git-lfs"
NAME_BYTES = 255
"""Of a file's name on the usual file systems."""
JSON_BYTES, JSON_DEPTH = 32 << 20, 64
"""What is read as JSON: GLM-4.6's index in GPTQ's parts has 20 MB, and so a tokenizer.json of 150,000 tokens."""
# Python's own floats end at 1e308; a whole number beyond them would end in an overflow wherever it is counted with.
JSON_LARGEST, TOO_LONG = 10**100, "it holds a whole number of more than 100 digits"
HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")


def inside(folder: Path, name: str) -> Path:
    """The file ``name`` of a model folder, refused when it leads elsewhere unasked.

    In a snapshot of a Hugging Face cache links lead to the cache's ``blobs`` and nowhere else. In a folder of one's own
    they may lead to any file of the same ending (``ln -s``), or into such a cache (``hf download --local-dir``).

    Raises:
        CheckpointError: the name has a path in it, a link leads where none may or nowhere, or the file is the pointer
            that git leaves where Git LFS has not fetched.
    """
    if Path(name).name != name or name in (".", "..") or "\0" in name or len(os.fsencode(name)) > NAME_BYTES:
        raise CheckpointError(
            f"{shown(name)} is not a plain file name in {folder}; refused, since it could lead out of the folder"
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
    """Parse a JSON object of the folder; see :func:`parse_json`.

    Raises:
        CheckpointError: missing, unreadable or not an object.
    """
    path = inside(folder, name)
    try:
        values = load_json(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; a model folder needs it") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}; download it again") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} should hold a JSON object, found {type(values).__name__}; download it again")
    return values


def load_json(path: Path) -> Any:
    """What a JSON file holds; see :func:`parse_json`. Every JSON file that is read is read here.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no ordinary file, too large, or no JSON.
    """
    return parse_json(read_bounded(path, JSON_BYTES))


def read_bounded(path: Path, most: int) -> bytes:
    """The bytes of an ordinary file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is a pipe or a device, which may never end, or has more than ``most`` bytes.
    """
    with open(path, "rb", opener=_without_waiting) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is no ordinary file")
        if found.st_size > most:
            raise ValueError(f"it has more than {most >> 20} MiB")
        # No more than it had a moment ago; Python makes room for what is asked for.
        return file.read(found.st_size)


def _without_waiting(path: str, flags: int) -> int:
    # A pipe would wait for somebody who writes into it.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def parse_json(data: str | bytes, most: int = JSON_BYTES) -> Any:
    """What JSON says, in bounds: UTF-8 with or without a byte order mark, no object that says two things of one key.

    Args:
        data: text, or its bytes.
        most: of these.

    Raises:
        ValueError: it is no JSON, nested deeper than :data:`JSON_DEPTH`, too large, or has a number (NaN, 1e999) or a
            character (half of a surrogate pair) that is none.
    """
    if len(data) > most:
        raise ValueError(f"it has more than {most >> 20} MiB")
    text = data.decode("utf-8") if isinstance(data, bytes) else data
    try:
        values = json.loads(text.removeprefix("\ufeff"), object_pairs_hook=_object, parse_constant=_no_number)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {JSON_DEPTH} levels") from None
    except ValueError as error:
        # Python's advice for a number of 4300 digits is to allow it.
        raise (ValueError(TOO_LONG) if str(error).startswith("Exceeds the limit") else error) from None
    # Only an escape can say half a character, so most files need no look at their strings.
    halves = bool(HALF_CHARACTER.search(text)) or (isinstance(data, str) and not text.isascii())
    for value in _walk(values):
        _require_sound(value, halves=halves)
    return values


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        for key, value in pairs:
            if values[key] != value:
                raise ValueError(f"it says both {shown(value)} and {shown(values[key])} of {shown(key)}")
    return values


def _no_number(name: str) -> Never:
    raise ValueError(f"it holds {name}, which is no number in JSON")


def _walk(values: Any) -> Iterator[Any]:
    """Every value that is no object and no list, and every key; level by level."""
    level = [values]
    for _ in range(JSON_DEPTH):
        below: list[Any] = []
        for value in level:
            if type(value) is dict:
                yield from value
                below += value.values()
            elif type(value) is list:
                below += value
            else:
                yield value
        if not below:
            return
        level = below
    raise ValueError(f"it is nested deeper than {JSON_DEPTH} levels")


def _require_sound(value: Any, *, halves: bool) -> None:
    if type(value) is float and not math.isfinite(value):
        raise ValueError("it holds a number that is larger than numbers are")
    if type(value) is int and abs(value) > JSON_LARGEST:
        raise ValueError(TOO_LONG)
    if halves and type(value) is str and any("\ud800" <= c <= "\udfff" for c in value):
        raise ValueError(f"it holds half of a surrogate pair, which is no character: {shown(value)}")


def file_sha256(path: Path, advance: Callable[[int], None] = lambda _: None) -> str:
    """sha256 of a file in hexadecimal, as model hubs show it."""
    digest = hashlib.sha256()
    block = memoryview(bytearray(HASH_BLOCK_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
            advance(count)
    return digest.hexdigest()
