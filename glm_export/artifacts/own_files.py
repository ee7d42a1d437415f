"""Which files of a folder glm-export wrote: what ``--force`` replaces, and all that is ever deleted."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from glm_export.artifacts.engine import KERNELS
from glm_export.artifacts.manifest import MANIFEST_FORMAT, PROOF, SIGNATURE, SIGNED_IN, STATEMENTS
from glm_export.artifacts.open import TOLD_BY, Kind
from glm_export.errors import GlmExportError, InputError
from glm_export.model_folder import read_json

RANGES_FILE = re.compile(r"ranges\.safetensors|rounded-\d+\.safetensors")
SAYS: Mapping[Kind, Mapping[str, type]] = {
    Kind.PROGRAM: {"format": int, "sizes": dict, "signature": dict, "config": dict, "dialect": str},
    Kind.ENGINE: {"format": int, "sizes": dict, "program": dict, "runtime": str, "profiles": list},
    Kind.RANGES: {"format": int, "checkpoint": dict, "corpus": dict, "layers": int},
    Kind.TRITON: {"format": int, "sizes": dict, "backend": str, "made_of": dict},
    Kind.LAYOUT: {"format": int, "sizes": dict, "program": str, "made_of": dict},
}
"""What each kind's manifest says, by which it is told from other people's files of that name."""
NESTED = (Kind.TRITON, Kind.LAYOUT)
"""Those with folders in them; names of their files are paths, with a slash."""
LEFT_BY_RUNS = ("*/__pycache__/*.pyc", f"*/*/{KERNELS}")
"""Of a Triton model, by whoever ran it: Python, and TensorRT-RTX."""
SHOWN = 3


def own_files(folder: Path, kind: Kind) -> frozenset[str]:
    """Names of the files that a folder's manifest says were written, itself among them.

    Raises:
        InputError: the manifest is not one of ours.
    """
    name = TOLD_BY[kind]
    try:
        manifest = read_json(folder, name)
    except GlmExportError as error:
        raise InputError(_not_ours(folder, name, "is damaged")) from error
    odd = [key for key, of in SAYS[kind].items() if not isinstance(manifest.get(key), of)]
    if odd or manifest["format"] != MANIFEST_FORMAT:
        raise InputError(_not_ours(folder, name, f"is not of glm-export (by {', '.join(odd) or 'its format'})"))
    return frozenset(_listed(folder, kind, manifest)) | {name}


def _listed(folder: Path, kind: Kind, manifest: Mapping[str, Any]) -> list[str]:
    if kind is Kind.RANGES and "sizes" not in manifest:  # written by an earlier version
        return [path.name for path in folder.iterdir() if RANGES_FILE.fullmatch(path.name)]
    if kind is Kind.TRITON:
        left = (path.relative_to(folder).as_posix() for pattern in LEFT_BY_RUNS for path in folder.glob(pattern))
        return [*map(str, manifest["sizes"]), *left]
    return [*map(str, manifest["sizes"]), *([KERNELS] if kind is Kind.ENGINE else []), *_certified(manifest)]


def _certified(manifest: Mapping[str, Any]) -> list[str]:
    """Signature and statements, where they were written with the proof; one that others made is theirs."""
    proof = manifest.get(PROOF)
    signed_in = proof.get(SIGNED_IN) if isinstance(proof, dict) else None
    return [name for name in (SIGNATURE, STATEMENTS) if isinstance(signed_in, list) and name in signed_in]


def _not_ours(folder: Path, name: str, found: str) -> str:
    return f"{folder / name} {found}, so --force does not replace {folder}; move it away, or give another --out"


def require_all_own(folder: Path, kind: Kind) -> None:
    """See that a folder holds what glm-export wrote and nothing else.

    Raises:
        InputError: it holds another file, a folder, or a link.
    """
    own = own_files(folder, kind)
    others = sorted(name for name, is_file in _entries(folder, _folders(own, kind)) if name not in own or not is_file)
    if others:
        more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        raise InputError(
            f"{folder} holds {', '.join(others[:SHOWN])}{more}, which glm-export did not write, and --force would "
            "delete; move it away, or give another --out"
        )


def _folders(own: frozenset[str], kind: Kind) -> frozenset[str]:
    """Folders that own files lie in; of most kinds there are none. A name that leads elsewhere has none either."""
    if kind not in NESTED:
        return frozenset()
    paths = [PurePosixPath(name) for name in own if not {"", ".", ".."} & set(name.split("/"))]
    return frozenset(str(above) for path in paths for above in path.parents if above.name)


def _entries(folder: Path, within: frozenset[str], before: str = "") -> Iterator[tuple[str, bool]]:
    """Names in a folder, and below it those in the folders ``within``; each with whether it is a file, and no link."""
    with os.scandir(folder) as entries:
        for entry in entries:
            name = before + entry.name
            if name in within and entry.is_dir(follow_symlinks=False):
                yield from _entries(folder / entry.name, within, f"{name}/")
            else:
                yield name, entry.is_file(follow_symlinks=False)


def remove_own(folder: Path, kind: Kind) -> bool:
    """Delete what glm-export wrote, and the folder if nothing is left in it. Says whether it is gone."""
    own = own_files(folder, kind)
    within = _folders(own, kind)
    # What is looked at is what lies there: no name in a manifest leads elsewhere.
    for name, _ in list(_entries(folder, within)):
        if name in own and not (folder / name).is_dir():
            (folder / name).unlink(missing_ok=True)
    for name in sorted(within, key=len, reverse=True):
        if not (folder / name).is_symlink() and (folder / name).is_dir():
            _removed_empty(folder / name)
    return _removed_empty(folder)


def _removed_empty(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True
