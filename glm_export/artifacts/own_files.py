"""Which files of a folder glm-export wrote: what ``--force`` replaces, and all that is ever deleted."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
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
}
"""What each kind's manifest says, by which it is told from other people's files of that name."""
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
    with os.scandir(folder) as entries:
        others = sorted(
            entry.name for entry in entries if entry.name not in own or not entry.is_file(follow_symlinks=False)
        )
    if others:
        more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        raise InputError(
            f"{folder} holds {', '.join(others[:SHOWN])}{more}, which glm-export did not write, and --force would "
            "delete; move it away, or give another --out"
        )


def remove_own(folder: Path, kind: Kind) -> bool:
    """Delete what glm-export wrote, and the folder if nothing is left in it. Says whether it is gone."""
    for name in own_files(folder, kind):
        path = folder / name
        if os.path.dirname(name) == "" and not path.is_dir():
            path.unlink(missing_ok=True)
    return _removed_empty(folder)


def _removed_empty(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True
