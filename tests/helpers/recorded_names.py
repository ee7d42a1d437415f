"""What names TensorRT's Python API had in which version: recorded once, in ``tests/tensorrt_names``.

Version 11.4 is recorded whole, the others as what came and went between them; each is worked out from its neighbour.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "tensorrt_names"
NEWEST = "11.4.0.106"
RTX = "rtx 1.7"
REQUIRED = {"8.6": "8.6.0", "10.16": "10.16.1.11", "11.4": NEWEST, "RTX 1.7": RTX}
"""The versions that every unguarded call must be known to, by the names a report gives them."""
MODULE = "module"
WORD = re.compile(r"^(?P<name>\w+)(?P<mark>\(\)|:|)(?P<kind>.*)$")


@dataclass(slots=True)
class Recorded:
    """What stands in a file of names. ``kinds``: qualified name -> what it gives, see ``PROVENANCE.md``."""

    names: set[str] = field(default_factory=set)
    enums: set[str] = field(default_factory=set)
    bases: dict[str, tuple[str, ...]] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """The names of one version. Of the classes in ``unrecorded`` nothing but the name is known."""

    names: frozenset[str]
    unrecorded: frozenset[str]

    def has(self, path: str) -> bool:
        """Whether it is known to have ``Class``, ``Class.member``, ``Enum.MEMBER`` or ``function``."""
        if path in self.names:
            return True
        owner, _, member = path.rpartition(".")
        # A base counts only where this version has it.
        bases = [base for base in api().bases.get(owner, ()) if base in self.names]
        return owner in self.names and any(f"{base}.{member}" in self.names for base in bases)

    def changed(self, gone: set[str], come: set[str]) -> Version:
        """A neighbour: without ``gone`` and their members, with ``come``.

        Raises:
            ValueError: the record contradicts itself.
        """
        if not gone <= self.names or come & self.names:
            raise ValueError(f"cannot take away {gone - self.names} and add {come & self.names}")
        kept = {name for name in self.names if name not in gone and name.rpartition(".")[0] not in gone}
        whole = {name for name in come if "." not in name}
        return Version(names=frozenset(kept | come), unrecorded=(self.unrecorded - gone) | whole)


def _read(path: Path) -> Recorded:
    found, owner = Recorded(), ""
    for line in path.read_text(encoding="ascii").splitlines():
        if line.startswith(" "):
            for word in line.split():
                match = WORD.match(word)
                assert match is not None
                name = match["name"] if owner == MODULE else f"{owner}.{match['name']}"
                found.names.add(name)
                if match["mark"]:
                    found.kinds[name] = match["mark"] + match["kind"]
                elif owner in found.enums:
                    found.kinds[name] = f":{owner}"
            continue
        sort, _, heading = line.partition(" ")
        owner = heading.partition("(")[0] or MODULE
        if sort in ("class", "enum"):
            found.names.add(owner)
            found.bases[owner] = tuple(filter(None, heading.partition("(")[2].rstrip(")").split(", ")))
        if sort == "enum":
            found.enums.add(owner)
    return found


@cache
def api() -> Recorded:
    """TensorRT 11.4, and the kinds of what only TensorRT-RTX has."""
    newest, rtx = _read(FOLDER / "names_11.4.txt"), _read(FOLDER / "names_rtx_1.7.txt")
    return Recorded(
        names=newest.names, enums=newest.enums | rtx.enums, bases=rtx.bases | newest.bases,
        kinds=rtx.kinds | newest.kinds,
    )  # fmt: skip


def _changes() -> Iterator[tuple[str, str, dict[str, set[str]]]]:
    """From, to, and what was ``removed`` and ``added``."""
    for section in (FOLDER / "changes.txt").read_text(encoding="ascii").split("## ")[1:]:
        heading, *lines = section.splitlines()
        before, _, after = heading.partition(" -> ")
        found: dict[str, set[str]] = {"removed": set(), "added": set()}
        chosen: set[str] = set()
        for line in lines:
            if line.startswith(" "):
                chosen.update(line.split())
            else:
                chosen = found[line]
        yield before, after, found


@cache
def versions() -> dict[str, Version]:
    """Every recorded version, by its full number."""
    found = {NEWEST: Version(names=frozenset(api().names), unrecorded=frozenset())}
    older = []
    for before, after, changes in _changes():
        if after.startswith("rtx"):
            found[after] = found[NEWEST].changed(changes["removed"], changes["added"])
        else:
            older.append((before, after, changes))
    for before, after, changes in reversed(older):
        found[before] = found[after].changed(changes["added"], changes["removed"])
    # What only TensorRT-RTX 1.7 has was read from it; 1.4 may have had less.
    rtx = _read(FOLDER / "names_rtx_1.7.txt").names
    found[RTX] = Version(names=found[RTX].names | rtx, unrecorded=frozenset())
    return found


def required() -> dict[str, Version]:
    """The versions of :data:`REQUIRED`."""
    return {label: versions()[number] for label, number in REQUIRED.items()}
