"""Attack every reader: ``python tests/attacks/run.py --count 5000 --seed 1``, or ``make attack``.

Each input is read in a process of its own with 20 seconds of computing and 2 GB more memory than it began with. It may
work, or raise a :class:`GlmExportError` of one short line. Anything else is a violation: another exception, a signal, a
file opened or a program started that are none of the input's.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parents[2]))

from glm_export.errors import MESSAGE_CHARACTERS, GlmExportError
from tests.attacks.readers import Reader, readers

SECONDS, BYTES = 20, 2 << 30
PATIENCE = 60
"""Seconds of a clock for what neither computes nor ends."""
WORKED, REFUSED, VIOLATION = "worked", "refused", "violation"
RUN_BY_US = "environment.py"
"""Templates are rendered in a process of ours."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """``kind``: worked, refused, or a violation, which ``told`` describes."""

    kind: str
    told: str = ""


def attacked(reader: Reader, name: str, number: int, seed: int, work: Path) -> Outcome:
    """One input of a reader; the same seed and number make the same."""
    folder = work / f"{os.getpid()}-{number}"
    answer = work / f"{os.getpid()}-{number}.answer"
    child = os.fork()
    if child == 0:
        _in_child(reader, Random(f"{seed} {name} {number}"), folder, answer)
    try:
        return _outcome(child, answer)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        answer.unlink(missing_ok=True)
        answer.with_suffix(".trace").unlink(missing_ok=True)


def _outcome(child: int, answer: Path) -> Outcome:
    started = time.monotonic()
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        if time.monotonic() - started > PATIENCE:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            where = answer.with_suffix(".trace").read_text(encoding="utf-8")[:1500]
            return Outcome(kind=VIOLATION, told=f"{where}\nhangs: no end in {PATIENCE} s")
        time.sleep(0.002)
    if os.WIFSIGNALED(status):
        return Outcome(kind=VIOLATION, told=f"ended by {signal.Signals(os.WTERMSIG(status)).name}")
    if not answer.is_file():
        return Outcome(kind=VIOLATION, told=f"exited with {os.waitstatus_to_exitcode(status)}")
    kind, _, told = answer.read_text(encoding="utf-8", errors="backslashreplace").partition("\n")
    return Outcome(kind=kind, told=told)


def _in_child(reader: Reader, chooser: Random, folder: Path, answer: Path) -> None:
    """Read one input and leave; never returns."""
    told = ""
    faulthandler.disable()
    faulthandler.dump_traceback_later(PATIENCE - 5, file=answer.with_suffix(".trace").open("w"))
    try:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 1)
        os.dup2(devnull, 2)
        reader.damage(folder, chooser)
        _limit()
        strange: list[str] = []
        sys.addaudithook(_watch(folder.parent, folder, strange))
        told = read(reader, folder, chooser)
        if strange:
            told = f"{VIOLATION}\n{strange[0]}"
    except BaseException:
        told = f"{VIOLATION}\n{traceback.format_exc()[-1500:]}"
    finally:
        with contextlib.suppress(BaseException):
            answer.write_text(told, encoding="utf-8", errors="backslashreplace")
        os._exit(0)


def read(reader: Reader, folder: Path, chooser: Random) -> str:
    """Read one input: how it ended, and on the lines behind what was said."""
    try:
        reader.call(folder, chooser)
    except GlmExportError as error:
        text = str(error)
        if not text or not text.isprintable() or len(text) > MESSAGE_CHARACTERS:
            return f"{VIOLATION}\nno short line: {text[:300]!r}"
        return f"{REFUSED}\n{text}"
    return WORKED


def _limit() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, used + BYTES))
    spent = int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (spent + SECONDS, spent + SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _watch(work: Path, folder: Path, strange: list[str]) -> object:
    """An audit hook that notes what is run, and what is opened beside the input."""

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        # Which of these starts a program is Python's choice: 3.13 spawns where 3.11 forks.
        if event in ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen"):
            if RUN_BY_US not in str(arguments[:2]):
                strange.append(f"runs {arguments[:2]}")
        elif event == "open" and isinstance(arguments[0], str | bytes):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            beside = path.startswith(str(work)) and not path.startswith(str(folder))
            if beside or path in ("/etc/passwd", "/dev/zero"):
                strange.append(f"opens {path}")

    return hook


def plan(names: list[str], count: int) -> Iterator[tuple[str, int]]:
    """Which input of which reader, evenly."""
    for number in range(count):
        yield names[number % len(names)], number // len(names)


def run(
    work: Path, count: int, seed: int, *, only: str = "", part: tuple[int, int] = (0, 1)
) -> dict[tuple[str, int], Outcome]:
    """Attack; ``part`` (1, 4) takes the second of every four inputs, each reader's sound folders are made once."""
    import torch

    torch.set_num_threads(1)
    made = {name: reader for name, reader in readers(work / "sound").items() if only in name}
    bait = work / "bait"
    bait.mkdir(exist_ok=True)
    (bait / "model.safetensors").write_bytes(b"bait")
    for module in (
        "glm_export.api",
        "glm_export.checkpoints.checkpoint",
        "glm_export.calibration.ranges",
        "onnxruntime",
    ):
        __import__(module)
    return {
        (name, number): attacked(made[name], name, number, seed, work)
        for place, (name, number) in enumerate(plan(sorted(made), count))
        if place % part[1] == part[0]
    }


def show(found: dict[tuple[str, int], Outcome]) -> None:
    """A table of counts, and every kind of violation with its first input."""
    names = sorted({name for name, _ in found})
    print(f"{'reader':32}{WORKED:>10}{REFUSED:>10}{VIOLATION:>11}")
    for name in names:
        counts = Counter(outcome.kind for (reader, _), outcome in found.items() if reader == name)
        print(f"{name:32}{counts[WORKED]:>10}{counts[REFUSED]:>10}{counts[VIOLATION]:>11}")
    counts = Counter(outcome.kind for outcome in found.values())
    print(f"{'all':32}{counts[WORKED]:>10}{counts[REFUSED]:>10}{counts[VIOLATION]:>11}")
    seen: Counter[str] = Counter()
    for (name, number), outcome in sorted(found.items()):
        if outcome.kind == VIOLATION:
            kind = outcome.told.strip().splitlines()[-1][:160]
            seen[kind] += 1
            if seen[kind] == 1:
                print(f"\n{name} {number}: {outcome.told}")


def main() -> int:
    """Exit 1 where an input was a violation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="readers whose name has this in it")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args()
    found: dict[tuple[str, int], Outcome] = {}
    with tempfile.TemporaryDirectory(prefix="attack-") as work:
        for part in _workers(Path(work), asked):
            found |= part
    show(found)
    return int(any(outcome.kind == VIOLATION for outcome in found.values()))


def _workers(work: Path, asked: argparse.Namespace) -> list[dict[tuple[str, int], Outcome]]:
    """Attack in several processes."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(asked.workers, mp_context=get_context("spawn")) as pool:
        jobs = []
        for place in range(asked.workers):
            own = work / str(place)
            own.mkdir()
            part = (place, asked.workers)
            jobs.append(pool.submit(run, own, asked.count, asked.seed, only=asked.only, part=part))
        return [job.result() for job in jobs]


if __name__ == "__main__":
    sys.exit(main())
