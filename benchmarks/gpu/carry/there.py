"""What the machine without network does with what a call carries to it. Only the standard library.

there.py look                     what is installed there, for `run.sh --carry cut --there FILE`
there.py take CARRIED STATE       keep the pieces of this call; put them together when all are there
there.py ready STATE CARRIED      see that they are, and take along results of an earlier visit
there.py pack STATE RESULTS       the results as one archive, in pieces that come back
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from carry.pieces import (
    MANIFEST,
    CarryError,
    cut,
    join,
    pack,
    read_manifest,
    require_whole,
    unpack,
    write_manifest,
)

ARCHIVE = "gpu-results.tar.xz"
BACK_BYTES = 16 << 20
"""Of a file that comes back."""


def look() -> str:
    """Python, and each installed package with its version, a line each."""
    found = sorted({f"{one.metadata['Name'].lower()}=={one.version}" for one in distributions()})
    return "\n".join([f"python=={platform.python_version()}", *found])


def take(carried: Path, state: Path) -> str:
    """Keep what this call brought.

    Returns:
        How much is there.

    Raises:
        CarryError: a piece is damaged.
    """
    manifest, pieces = read_manifest(carried), state / "pieces"
    if (state / "site").is_dir() and read_manifest(state) == manifest:
        return f"{manifest['name']} is put together already"
    if (state / MANIFEST).is_file() and read_manifest(state) != manifest:
        # Pieces of another cut.
        shutil.rmtree(pieces, ignore_errors=True)
        shutil.rmtree(state / "site", ignore_errors=True)
    pieces.mkdir(parents=True, exist_ok=True)
    write_manifest(state, manifest)
    for piece in manifest["pieces"]:
        if (carried / piece["name"]).is_file():
            partial = pieces / f".{piece['name']}"
            shutil.copyfile(require_whole(carried, piece), partial)
            os.replace(partial, pieces / piece["name"])
    missing = [piece["name"] for piece in manifest["pieces"] if not (pieces / piece["name"]).is_file()]
    if missing:
        return f"{len(manifest['pieces']) - len(missing)} of {len(manifest['pieces'])} pieces; missing: {missing[0]} …"
    return f"all {len(manifest['pieces'])} pieces; {assemble(state)} files put together in {state / 'site'}"


def assemble(state: Path) -> int:
    """The carried packages as a folder for ``PYTHONPATH``, whole or not at all."""
    pieces, partial = state / "pieces", state / "site.partial"
    shutil.rmtree(partial, ignore_errors=True)
    archive = join([pieces], read_manifest(state), state / "site.tar.xz")
    # They take memory where they lie.
    shutil.rmtree(pieces)
    count = unpack(archive, partial)
    archive.unlink()
    link_cuda(partial)
    partial.rename(state / "site")
    return count


def link_cuda(site: Path) -> None:
    """ONNX Runtime looks for CUDA's packages beside its own, and those of this machine lie elsewhere."""
    spec = find_spec("nvidia")
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    if places and not (site / "nvidia").exists():
        (site / "nvidia").symlink_to(places[0])


def ready(state: Path, carried: Path) -> str:
    """See that the packages are there, and unpack earlier results where the machine has none of its own.

    Raises:
        CarryError: they are not.
    """
    if not (state / "site").is_dir():
        raise CarryError(f"{state} should hold the carried packages, and does not: the chain broke; begin it again", 3)
    results = state / "results"
    if (carried / ARCHIVE).is_file() and not results.is_dir():
        return f"{unpack(carried / ARCHIVE, results)} files of an earlier visit"
    return "everything is there"


def pack_results(state: Path, results: Path) -> str:
    """One archive, cut into pieces that come back, the report beside it to be read at once.

    Raises:
        CarryError: nothing was found out.
    """
    found = state / "results"
    if not found.is_dir():
        raise CarryError(f"{found} should hold results, and is not there: the run did not begin; see its output", 3)
    results.mkdir(parents=True, exist_ok=True)
    archive = state / ARCHIVE
    pack(found, archive, last_words=True)
    manifest = cut(archive, results, BACK_BYTES)
    write_manifest(results, manifest)
    if (found / "report.md").is_file():
        shutil.copyfile(found / "report.md", results / "report.md")
    return json.dumps({"back": sorted(path.name for path in results.iterdir()), "bytes": manifest["bytes"]})


def main(words: list[str]) -> int:
    """One of the above."""
    actions: dict[str, Callable[..., str]] = {"look": look, "take": take, "ready": ready, "pack": pack_results}
    try:
        print(actions[words[0]](*map(Path, words[1:])))
    except (KeyError, IndexError, TypeError):
        print(__doc__, file=sys.stderr)
        return 2
    except CarryError as error:
        print(error, file=sys.stderr)
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
