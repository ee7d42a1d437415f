"""The kit on a machine without network that is reached by few calls, each with one command and small files.

    run.sh --carry cut [PART ...]     download what that machine lacks, cut it, and print the calls in order
    run.sh --carry back FOLDER ...    put together what a call brought back, in gpu-results/
    run.sh --rehearse [PART ...]      all of it here, without a GPU and without network

Exit code 0: done. 1: something differed, in the rehearsal. 2: usage. 3: the machine or the index.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from carry import rehearsal
from carry.chain import (
    ROOT,
    Call,
    Limits,
    calls,
    checkout_bytes,
    laid_out,
    piece_bytes,
)
from carry.pieces import CarryError, join, pack, read_manifest, unpack
from carry.there import ARCHIVE
from carry.wheels import (
    SETS,
    There,
    download,
    lay_out,
    missing,
    read_there,
)

HOME = Path(__file__).resolve().parent
FOLDER = ROOT / "gpu-carry"
RESULTS = ROOT / "gpu-results"
EARLIER = FOLDER / "earlier"
SITE = "site.tar.xz"


def main(words: list[str] | None = None) -> int:
    """One of the actions."""
    arguments = parser().parse_intermixed_args(words)
    limits = Limits(piece=int(arguments.piece_mb * 1e6), seconds=arguments.call_seconds)
    try:
        if arguments.action == "back":
            count = brought_back([Path(one) for one in arguments.words], RESULTS, EARLIER)
            print(f"{count} files in {RESULTS}, report: {RESULTS / 'report.md'}")
            return 0
        if arguments.action == "rehearse":
            return rehearsed(arguments, limits)
        there = read_there(arguments.there)
        chain = prepared(arguments, there, limits, EARLIER)
        print(said(chain, limits))
    except CarryError as error:
        print(error, file=sys.stderr)
        return error.code
    return 0


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="run.sh --carry", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("action", choices=("cut", "back", "rehearse"))
    options.add_argument("words", nargs="*", metavar="PART or FOLDER")
    options.add_argument("--there", type=Path, default=HOME / "there.txt", help="what is installed there")
    options.add_argument("--sets", default=",".join(SETS), help="what to carry (default %(default)s)")
    options.add_argument("--budget", type=int, default=1800, help="seconds of all calls (default %(default)s)")
    options.add_argument("--call-seconds", type=int, default=Limits.seconds, help="of one (default %(default)s)")
    options.add_argument("--piece-mb", type=float, default=Limits.piece / 1e6, help="(default %(default)s)")
    options.add_argument("--state", default="/dev/shm/glm-export", help="a folder there, in memory")
    options.add_argument("--results", default="$OUT", help="what a command there calls the folder that comes back")
    options.add_argument("--wheels", type=Path, default=FOLDER / "wheels", help="where wheels are kept here")
    options.add_argument("--pip", default="", help="further words for pip, e.g. '--no-index --find-links DIR'")
    options.add_argument("--there-python", type=Path, help="rehearsal: an interpreter with what is installed there")
    return options


def prepared(arguments: argparse.Namespace, there: There, limits: Limits, earlier: Path) -> list[Call]:
    """Download, lay out, cut, and the calls.

    Raises:
        CarryError: a wheel is not to be had, or a call would break its limits.
    """
    needed = missing(arguments.sets.split(","), there)
    wheels = download(needed, there, arguments.wheels, arguments.pip.split()) if needed else []
    print(f"{len(wheels)} packages for Python {there.python}: {', '.join(path.name.split('-')[0] for path in wheels)}")
    lay_out(wheels, FOLDER / "site")
    pack(FOLDER / "site", FOLDER / SITE)
    shutil.rmtree(FOLDER / "site")
    places = laid_out(FOLDER / SITE, FOLDER / "calls", piece_bytes(limits, checkout_bytes()))
    (FOLDER / SITE).unlink()
    return calls(places, earlier, arguments, limits)


def said(chain: list[Call], limits: Limits) -> str:
    """The calls, to be made one after the other."""
    checkout = checkout_bytes()
    each = f"each within {limits.seconds} s and at most {rehearsal.KEPT_S} s after the one before"
    lines = [f"{len(chain)} calls, {each}, with the checkout ({checkout / 1e6:.1f} MB) and the folders named:"]
    for index, call in enumerate(chain):
        carries = ", ".join(f"{folder.relative_to(ROOT)} ({call.bytes() / 1e6:.1f} MB)" for folder in call.carries)
        lines += [f"\n{index + 1}. carries {carries or 'nothing else'}", f"   {call.command}"]
    back = "bash benchmarks/gpu/run.sh --carry back FOLDER"
    return "\n".join([*lines, f"\nAfter each call that ran parts, with the folder of what came back:\n   {back}"])


def brought_back(folders: list[Path], results: Path, earlier: Path) -> int:
    """Results joined, kept as one archive beside the folder they are unpacked in; how many files.

    Raises:
        CarryError: no folder was named, or a piece is missing or damaged.
    """
    if not folders:
        raise CarryError("`back` needs the folder of what a call brought back; name it")
    earlier.mkdir(parents=True, exist_ok=True)
    archive = join(folders, read_manifest(folders[0]), earlier / ARCHIVE)
    results.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(archive, results.parent / ARCHIVE)
    return unpack(archive, results)


def rehearsed(arguments: argparse.Namespace, limits: Limits) -> int:
    """The chain from an empty folder to the report.

    Raises:
        CarryError: a call broke a limit, or nothing came back.
    """
    there = read_there(arguments.there)
    stage = rehearsal.Stage(FOLDER / "rehearsal", limits)
    python, note = rehearsal.interpreter(arguments.there_python, there, stage.folder / "environment", arguments.there)
    earlier = stage.folder / "earlier"
    shutil.rmtree(earlier, ignore_errors=True)
    with stage.state() as state:
        arguments.state, arguments.results, arguments.words = str(state), "$OUT", ["--on-cpu", *arguments.words]
        chain = prepared(arguments, note.there, limits, earlier)
        print(said(chain, limits), flush=True)
        results = stage.folder / "results"
        shutil.rmtree(results, ignore_errors=True)
        for call in chain:
            done = stage.make(call, python)
            if done.back:
                brought_back([done.folder], results, earlier)
    text = stage.summary(note, results)
    print(text)
    return stage.code


if __name__ == "__main__":
    sys.exit(main())
