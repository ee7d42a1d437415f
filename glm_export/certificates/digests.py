"""A folder's files by their digests: listed without following a link, and compared with what was recorded of them."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from glm_export.artifacts.engine import KERNELS
from glm_export.artifacts.manifest import CARD, SIGNATURE, STATEMENTS
from glm_export.artifacts.open import TOLD_BY, Kind
from glm_export.errors import CheckpointError, InputError, shown
from glm_export.model_folder import file_sha256
from glm_export.progress import NullProgress, Progress

logger = logging.getLogger(__name__)
OF_GIT = (".git", ".gitattributes", ".github", ".gitignore")
"""What signatures of OpenSSF Model Signing leave out, and nothing that runs a model reads."""
MOST_FILES = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A file that is not as recorded: ``how`` is ``changed``, ``added``, ``missing``, ``a link``, or a few words."""

    name: str
    how: str

    def __str__(self) -> str:
        said = f"{shown(self.name)[1:-1]}: {self.how}"
        if self.name == KERNELS and self.how == "added":
            said += " (TensorRT-RTX writes it when an engine runs; remove it)"
        return said


def files_of(folder: Path) -> tuple[dict[str, Path], list[Difference]]:
    """Every file by its name relative to the folder, ``d/f``; and what is there that is neither file nor folder.

    Raises:
        InputError: there are more than anybody would sign.
    """
    files: dict[str, Path] = {}
    odd: list[Difference] = []
    for path in _walked(folder):
        name, mode = path.relative_to(folder).as_posix(), path.lstat().st_mode
        if not _is_text(name):
            odd.append(Difference(name=name, how="a name that is no text"))
        elif stat.S_ISREG(mode):
            files[name] = path
        elif not stat.S_ISDIR(mode):
            odd.append(Difference(name=name, how="a link" if stat.S_ISLNK(mode) else "no file, but a pipe or a device"))
        if len(files) + len(odd) > MOST_FILES:
            raise InputError(f"{folder} holds more than {MOST_FILES} files; give a folder that glm-export wrote")
    return files, odd


def _walked(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        # What cannot be listed would be taken for empty.
        raise error

    for above, folders, names in os.walk(folder, followlinks=False, onerror=refuse):
        # A link to a folder is listed among folders.
        yield from (Path(above) / name for name in sorted((*folders, *names)))


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_of_git(name: str) -> bool:
    """Whether a file belongs to git's own."""
    return PurePosixPath(name).parts[0] in OF_GIT


def compared(recorded: Mapping[str, str], found: Mapping[str, str]) -> list[Difference]:
    """What differs between two mappings of names to digests, by name."""
    ways = [
        Difference(name=name, how="missing" if name not in found else "added" if name not in recorded else "changed")
        for name in {*recorded, *found}
        if recorded.get(name) != found.get(name)
    ]
    return sorted(ways, key=lambda difference: difference.name)


def own_digests(folder: Path, kind: Kind, progress: Progress | None = None) -> dict[str, str]:
    """sha256 of the folder's files by name, without the manifest, the signature, the statements and git's own.

    Args:
        folder: without links; see :func:`files_of`.
        kind: says which file is the manifest.
        progress: shows bytes read.
    """
    apart = {TOLD_BY[kind], SIGNATURE, STATEMENTS}
    files, _ = files_of(folder)
    asked = {name: path for name, path in sorted(files.items()) if name not in apart and not is_of_git(name)}
    total = sum(path.stat().st_size for path in asked.values())
    logger.info("%s: %d bytes in %d files are hashed", folder, total, len(asked))
    advance = (progress or NullProgress()).task("files", total)
    return {name: file_sha256(path, advance) for name, path in asked.items()}


def recorded_digests(manifest: Mapping[str, Any], beside: Mapping[str, str] | None) -> dict[str, str]:
    """What a manifest records of the files of its folder, with what lay beside them when it was proven.

    The card is its owner's: once it is proven, it is the one that lay there then. ``beside``: None where nothing was.

    Raises:
        CheckpointError: it records none, as older versions did.
    """
    hashes = manifest.get("sha256")
    if not isinstance(hashes, dict) or not all(isinstance(digest, str) for digest in hashes.values()):
        raise CheckpointError(
            "the manifest has no hashes of the folder's files, as older versions wrote it; export (or build) again"
        )
    if beside is None:
        return dict(hashes)
    return {**beside, **{name: digest for name, digest in hashes.items() if name != CARD}}


def root_digest(digests: Mapping[str, str]) -> str:
    """One sha256 for all of them: of names and digests, by name, so that it is of this folder alone."""
    root = hashlib.sha256()
    for name, digest in sorted(digests.items()):
        root.update(f"{name}\0{digest}\n".encode())
    return root.hexdigest()
