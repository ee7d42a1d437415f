"""A folder as one archive in checksummed pieces, and back. Only the standard library: it works on either machine."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

MANIFEST = "manifest.json"
FASTEST: Final = 1
"""Of xz: libraries become a fifth smaller than in a wheel, and a level higher takes three times as long for 1 %."""
BLOCK = 1 << 20
LONGEST_LOG = 256 << 10
"""Bytes kept of the end of a log."""


class CarryError(Exception):
    """What was expected, what was found, and what to do, in one line; ``code``: 2 input, 3 the machine."""

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


def sha256_of(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pack(folder: Path, target: Path, *, last_words: bool = False) -> None:
    """A folder as an archive that is the same for the same files.

    Args:
        folder: what to pack; links stay links.
        target: a file, written whole or not at all.
        last_words: of each log only the end.
    """
    partial = target.with_name(f".{target.name}.partial")
    with tarfile.open(partial, mode="w:xz", preset=FASTEST) as archive:
        for path in sorted(folder.rglob("*")):
            if not path.is_symlink() and path.is_dir():
                continue
            entry = archive.gettarinfo(path, str(path.relative_to(folder)))
            entry.uid = entry.gid = entry.mtime = 0
            entry.uname = entry.gname = ""
            if not entry.isreg():
                archive.addfile(entry)
                continue
            with path.open("rb") as file:
                if last_words and path.suffix == ".log" and entry.size > LONGEST_LOG:
                    file.seek(-LONGEST_LOG, os.SEEK_END)
                    entry.size = LONGEST_LOG
                archive.addfile(entry, file)
    os.replace(partial, target)


def cut(archive: Path, folder: Path, size: int) -> dict[str, Any]:
    """Cut a file into pieces of at most ``size`` bytes.

    Returns:
        The manifest that joins them again: name, bytes and sha256 of the whole and of each piece.
    """
    if size < 1:
        raise CarryError(f"pieces of {size} bytes hold nothing; leave more room for them")
    folder.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    with archive.open("rb") as file:
        while block := file.read(size):
            piece = folder / f"{archive.name}.{len(found):02d}"
            piece.write_bytes(block)
            found.append({"name": piece.name, "bytes": len(block), "sha256": hashlib.sha256(block).hexdigest()})
    return {"name": archive.name, "bytes": archive.stat().st_size, "sha256": sha256_of(archive), "pieces": found}


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Beside the pieces."""
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Of a folder of pieces.

    Raises:
        CarryError: it has none.
    """
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CarryError(f"{path} should name the pieces, and cannot be read ({error}); carry it with them") from error
    return manifest


def require_whole(folder: Path, piece: dict[str, Any]) -> Path:
    """A piece that is as it was cut.

    Raises:
        CarryError: it is damaged.
    """
    path = folder / str(piece["name"])
    if path.stat().st_size != piece["bytes"] or sha256_of(path) != piece["sha256"]:
        raise CarryError(f"{path} is not the piece that was cut: its checksum differs; carry it again")
    return path


def join(folders: Iterable[Path], manifest: dict[str, Any], target: Path) -> Path:
    """Put the pieces together that lie in some folders.

    Raises:
        CarryError: one is missing or damaged.
    """
    places = list(folders)
    partial = target.with_name(f".{target.name}.partial")
    with partial.open("wb") as whole:
        for piece in manifest["pieces"]:
            place = next((place for place in places if (place / piece["name"]).is_file()), None)
            if place is None:
                raise CarryError(f"piece {piece['name']} is missing among {len(manifest['pieces'])}; carry it, too")
            with require_whole(place, piece).open("rb") as part:
                shutil.copyfileobj(part, whole, BLOCK)
    if sha256_of(partial) != manifest["sha256"]:
        raise CarryError(f"{target} is not what was cut, though its pieces are; cut and carry again")
    os.replace(partial, target)
    return target


def unpack(archive: Path, folder: Path) -> int:
    """Take an archive apart; how many files it has. Nothing of it leads out of the folder.

    Raises:
        CarryError: it is no archive, or one of its files would lie elsewhere.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(archive, "r:xz") as found:
            found.extractall(folder, filter="data")
            return len(found.getnames())
    except (tarfile.TarError, EOFError) as error:
        raise CarryError(f"{archive} cannot be taken apart: {error}; bring it again") from error


def files_of(folder: Path) -> Iterator[Path]:
    """Every file below a folder."""
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
