"""Names that a store or a list gives: refused where they lead out of a folder, and read from ``SHA256SUMS``."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping

from glm_export.errors import CheckpointError, shown
from glm_export.model_folder import NAME_BYTES

SUMS = "SHA256SUMS"
"""As ``sha256sum FILES > SHA256SUMS`` writes it."""
LINE = re.compile(r"\\?([0-9a-fA-F]{64}) [ *](.+)")
HEX = re.compile(r"[0-9a-f]{64}")
RUN = frozenset(
    (".py", ".pyc", ".pyd", ".pkl", ".pickle", ".so", ".dll", ".dylib", ".sh", ".exe", ".pt", ".pth", ".ckpt", ".bin")
)
"""Endings of what is run, or could be when it is unpickled: a folder that we wrote holds none."""


def require_names(names: Iterable[str], where: str) -> None:
    """See that names are those of files right in a folder, on every file system.

    Args:
        names: as they were given.
        where: for people.

    Raises:
        CheckpointError: one leads elsewhere or is none, or two differ in case or accents' form alone.
    """
    seen: dict[str, str] = {}
    for name in names:
        if not is_plain(name):
            raise CheckpointError(
                f"{where} names {shown(name)}, which is no plain file name; refused, since it could lead out of the "
                "folder: have it uploaded anew"
            )
        other = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            raise CheckpointError(
                f"{where} names both {shown(other)} and {shown(name)}, which are one file on some systems; refused: "
                "rename one"
            )


def is_plain(name: str) -> bool:
    """Whether a name is that of a file in a folder, and of nothing hidden."""
    return (
        bool(name)
        and not name.startswith(".")
        and not set(name) & set("/\\:")
        and name.isprintable()
        and name == name.strip()
        and len(os.fsencode(name)) <= NAME_BYTES
    )


def require_harmless(names: Iterable[str], where: str) -> None:
    """See that a folder of ours names nothing that is run.

    Raises:
        CheckpointError: it does.
    """
    for name in names:
        ending = os.path.splitext(name)[1].lower()
        if ending in RUN:
            raise CheckpointError(
                f"{where} names {shown(name)}: a folder that glm-export wrote holds no {ending} file; refused"
            )


def parse_sums(text: str, where: str) -> dict[str, str]:
    """Hashes by name, of files right beside the list; those of folders below are left out.

    Raises:
        CheckpointError: a line is none, a name leads elsewhere, or two lines differ about one.
    """
    found: dict[str, str] = {}
    for line in text.splitlines():
        if not line.strip():
            continue
        match = LINE.fullmatch(line)
        if match is None or line.startswith("\\"):
            raise CheckpointError(
                f"{where} has the line {shown(line)}, expected a sha256, two blanks and a name; mend it"
            )
        name, digest = match[2].removeprefix("./"), match[1].lower()
        if "/" in name and all(is_plain(part) for part in name.split("/")):
            continue
        if name.startswith(".") and is_plain(name[1:]):
            continue
        if found.setdefault(name, digest) != digest:
            raise CheckpointError(f"{where} has two hashes of {shown(name)}; make it again")
    require_names(found, where)
    return found


def sums_text(hashes: Mapping[str, str]) -> str:
    """``SHA256SUMS`` of a folder, in name order: the list that is pinned where a store has none."""
    return "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))
