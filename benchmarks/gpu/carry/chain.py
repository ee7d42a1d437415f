"""The calls that bring a folder to a machine, run the kit there, and bring the results back; each within its limits."""

from __future__ import annotations

import math
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carry.pieces import CarryError, cut, write_manifest

ROOT = Path(__file__).resolve().parents[3]
HERE = "benchmarks/gpu/carry"
MARGIN_BYTES = 1 << 20
"""Left of what a call may carry, for what its transfer adds."""
ENDING_S = 60
"""Of a call that runs parts: for the last one to end, and the archive to be written."""
TRANSFER_S = 30
"""What a call that brings a piece takes, guessed."""


@dataclass(frozen=True)
class Limits:
    """Of one call: characters of its command, bytes it carries with the checkout, seconds, and what comes back."""

    command: int = 2000
    bytes: int = 64 << 20
    seconds: int = 600
    piece: int = 38_000_000
    files_back: int = 8
    bytes_back: int = 16 << 20


@dataclass(frozen=True)
class Call:
    """A command, and the folders of this repository that git ignores and that it needs."""

    command: str
    carries: tuple[Path, ...]

    def bytes(self) -> int:
        """Of what it carries beside the checkout."""
        return sum(path.stat().st_size for folder in self.carries for path in folder.rglob("*") if path.is_file())


def tracked() -> list[Path]:
    """Files of the checkout that travel with every call: those git knows, and those it does not ignore.

    Raises:
        CarryError: this is no checkout.
    """
    words = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CarryError(f"{ROOT} should be a git checkout, and is none: {done.stderr.strip()}", 3)
    found = (Path(name) for name in done.stdout.split("\0") if name)
    return [path for path in found if (ROOT / path).is_symlink() or (ROOT / path).is_file()]


def checkout_bytes() -> int:
    """Of what travels with every call."""
    return sum((ROOT / path).lstat().st_size for path in tracked())


def piece_bytes(limits: Limits, checkout: int) -> int:
    """How large a piece may be beside the checkout.

    Raises:
        CarryError: the checkout leaves no room.
    """
    room = limits.bytes - checkout - MARGIN_BYTES
    if room < MARGIN_BYTES:
        raise CarryError(
            f"a call carries {limits.bytes / 1e6:.1f} MB, and the checkout alone has {checkout / 1e6:.1f} MB; "
            "remove untracked files, or ignore them"
        )
    return min(room, limits.piece)


def laid_out(archive: Path, folder: Path, size: int) -> list[Path]:
    """A folder for each call that brings a piece, with the manifest in each."""
    shutil.rmtree(folder, ignore_errors=True)
    manifest: dict[str, Any] = cut(archive, folder / "pieces", size)
    found = []
    for index, piece in enumerate(manifest["pieces"]):
        place = folder / f"call-{index + 1:02d}"
        place.mkdir()
        (folder / "pieces" / piece["name"]).rename(place / piece["name"])
        write_manifest(place, manifest)
        found.append(place)
    (folder / "pieces").rmdir()
    return found


def calls(places: Sequence[Path], earlier: Path, asked: Any, limits: Limits) -> list[Call]:
    """The chain: a call for each piece, then as many that run the kit as the budget holds.

    Args:
        places: folders of pieces, below the checkout.
        earlier: the folder with the archive of an earlier visit, where there was one.
        asked: the command line: ``state``, a folder there, in memory; ``results``, how a command there says where
            results lie; ``budget``, seconds for everything; ``words`` for ``run.sh``.
        limits: of a call.

    Raises:
        CarryError: the budget is too small, or a call breaks a limit.
    """
    left = asked.budget - TRANSFER_S * len(places)
    if left < 2 * ENDING_S:
        raise CarryError(
            f"{len(places)} pieces take about {asked.budget - left} s of {asked.budget} s; give a larger --budget"
        )
    where = shlex.quote(asked.state)
    found = [
        Call(f"python3 {HERE}/there.py take {shlex.quote(relative(place))} {where}", (place,)) for place in places
    ]  # fmt: skip
    most = limits.seconds - ENDING_S
    carries = (earlier,) if earlier.is_dir() else ()
    for index in range(math.ceil(left / limits.seconds)):
        seconds = min(most, left - index * limits.seconds - ENDING_S)
        if seconds < ENDING_S:
            break
        run = [f"bash {HERE}/run_there.sh", where, shlex.quote(relative(earlier)), f'"{asked.results}"', str(seconds)]
        found.append(Call(" ".join([*run, *map(shlex.quote, asked.words)]), carries))
    checkout = checkout_bytes()
    for call in found:
        require_within(call, checkout, limits)
    return found


def relative(path: Path) -> str:
    """As the machine sees it, in the root of its copy of the checkout."""
    return str(path.resolve().relative_to(ROOT))


def require_within(call: Call, checkout: int, limits: Limits) -> None:
    """See that a call keeps its limits.

    Raises:
        CarryError: it does not.
    """
    if len(call.command) > limits.command:
        raise CarryError(f"a command has {len(call.command)} characters, {limits.command} at most; name fewer parts")
    carried = call.bytes() + checkout
    if carried > limits.bytes:
        raise CarryError(f"a call carries {carried} bytes, {limits.bytes} at most; cut smaller pieces (--piece-mb)")
