"""The machine that is reached by calls, played here: a fresh copy of the checkout for each, no network, every limit."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from carry.chain import ROOT, Call, Limits, checkout_bytes, relative, require_within, tracked
from carry.pieces import CarryError
from carry.wheels import There

MEMORY = Path("/dev/shm")
KEPT_S = 30
"""How long a machine waits for the next call before it forgets."""
GRACE_S = 15
MOST_SHOWN = 4000


@dataclass(frozen=True)
class Note:
    """What the rehearsal's Python was: ``said`` for the report, ``there`` to cut wheels for."""

    said: str
    there: There


@dataclass(frozen=True)
class Done:
    """One call as it went: seconds, bytes it carried with the checkout, and what came back in ``folder``."""

    command: str
    code: int
    seconds: float
    waited: float
    carried: int
    folder: Path
    back: tuple[str, ...]


@dataclass
class Stage:
    """Where calls are made, and what came of them."""

    folder: Path
    limits: Limits
    done: list[Done] = field(default_factory=list)
    ended: float | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def code(self) -> int:
        """The worst of the calls."""
        return max((done.code for done in self.done), default=0)

    @contextmanager
    def state(self) -> Iterator[Path]:
        """A folder in memory that does not outlive the rehearsal, empty and not there yet."""
        with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
            yield Path(folder) / "glm-export"

    def make(self, call: Call, python: Path) -> Done:
        """One call: copy, command, results; held to every limit.

        Raises:
            CarryError: it broke one, or its command failed for another reason than a comparison.
        """
        require_within(call, checkout_bytes(), self.limits)
        number = len(self.done) + 1
        results = self.folder / f"back-{number:02d}"
        shutil.rmtree(results, ignore_errors=True)
        results.mkdir()
        with tempfile.TemporaryDirectory() as place:
            carried = copied(Path(place), call)
            waited = 0.0 if self.ended is None else time.monotonic() - self.ended
            started = time.monotonic()
            code = self._ran(call, Path(place), results, python)
        self.ended = time.monotonic()
        back = sorted(path for path in results.rglob("*") if path.is_file())
        done = Done(
            call.command, code, self.ended - started, waited, carried, results, tuple(path.name for path in back)
        )
        self.done.append(done)
        print(f"call {number}: {code}, {done.seconds:.0f} s, {carried / 1e6:.1f} MB there, {len(back)} files back")
        self._require_kept(done, back)
        return done

    def _ran(self, call: Call, place: Path, results: Path, python: Path) -> int:
        log = self.folder / f"call-{len(self.done) + 1:02d}.log"
        ended = ["timeout", "--signal=TERM", f"--kill-after={GRACE_S}", str(self.limits.seconds)]
        environment = {
            "PATH": f"{python.parent}:/usr/bin:/bin", "OUT": str(results), "HOME": str(place), "LANG": "C.UTF-8",
            "CUDA_VISIBLE_DEVICES": "",
        }  # fmt: skip
        with log.open("w", encoding="utf-8") as said:
            return subprocess.run(
                [*without_network(), *ended, "bash", "-c", call.command], cwd=place, env=environment, stdout=said,
                stderr=subprocess.STDOUT, check=False,
            ).returncode  # fmt: skip

    def _require_kept(self, done: Done, back: list[Path]) -> None:
        log = self.folder / f"call-{len(self.done):02d}.log"
        if done.code not in (0, 1):
            said = log.read_text(encoding="utf-8", errors="replace").strip()[-MOST_SHOWN:]
            raise CarryError(f"call {len(self.done)} ended with {done.code}: {said.splitlines()[-1:]}; see {log}", 3)
        if len(back) > self.limits.files_back or any(path.stat().st_size > self.limits.bytes_back for path in back):
            sizes = [path.stat().st_size for path in back]
            raise CarryError(f"{len(back)} files of up to {max(sizes)} bytes would come back; see {done.folder}", 3)

    def summary(self, note: Note, results: Path) -> str:
        """What was carried, in how many calls, and where the report is; written beside it, too."""
        lines = [
            "# The chain, rehearsed", "", f"{note.said} {network_said()}", "",
            "| call | command | carried, bytes with the checkout | waited, s | seconds | exit code | came back |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]  # fmt: skip
        for number, done in enumerate(self.done, 1):
            command = re.sub(r"\s+", " ", done.command).replace("|", "\\|")
            lines.append(
                f"| {number} | `{command}` | {done.carried} | {done.waited:.1f} | {done.seconds:.0f} "
                f"| {done.code} | {', '.join(done.back) or 'nothing'} |"
            )
        carried = sum(done.carried for done in self.done)
        waited = max((done.waited for done in self.done), default=0)
        worked = sum(done.seconds for done in self.done)
        whole = f"{len(self.done)} calls, {carried} bytes carried, {worked:.0f} s at work, longest wait {waited:.1f} s"
        lines += ["", f"{whole} ({KEPT_S} s at most).", "", f"report: {results / 'report.md'}"]
        text = "\n".join(lines) + "\n"
        (self.folder / "rehearsal.md").write_text(text, encoding="utf-8")
        return text


def copied(place: Path, call: Call) -> int:
    """A fresh copy of the checkout and what the call carries, nothing else; bytes."""
    total = 0
    carried = [path.relative_to(ROOT) for folder in call.carries for path in folder.rglob("*") if path.is_file()]
    for path in (*tracked(), *carried):
        target = place / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, target, follow_symlinks=False)
        total += target.lstat().st_size
    return total


@cache
def without_network() -> tuple[str, ...]:
    """A command prefix that takes the network away, where this user may."""
    words = ("unshare", "--net")
    if shutil.which(words[0]) is None:
        return ()
    return words if subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0 else ()


def network_said() -> str:
    """For the report."""
    return "It had no network." if without_network() else "This user may not take the network away: it was there."


def interpreter(given: Path | None, there: There, folder: Path, listed: Path) -> tuple[Path, Note]:
    """An interpreter with what is installed there, and nothing else.

    Args:
        given: one to use as it is; None: an environment is made.
        there: what is installed there.
        folder: for the environment; one that was made before is taken again.
        listed: the file that says so.

    Raises:
        CarryError: pip could not install it.
    """
    if given is not None:
        version = require_version(given)
        return given.absolute(), Note(f"The interpreter was {given}, Python {version}.", replace(there, python=version))
    found = next((one for one in candidates(there.python) if version_of(one) == there.python), Path(sys.executable))
    version = require_version(found)
    python = folder / version / "bin" / "python3"
    if not (folder / version / "whole").is_file():
        shutil.rmtree(folder / version, ignore_errors=True)
        installed = [f"{name}=={one}" for name, one in there.packages.items()]
        for words in (
            [str(found), "-m", "venv", str(folder / version)],
            [str(python), "-m", "pip", "install", "--quiet", "--no-deps", *installed],
        ):
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
                raise CarryError(f"an environment as {listed} says cannot be made: {reason}; use --there-python", 3)
        (folder / version / "whole").touch()
    other = "" if version == there.python else f", since Python {there.python} was not found here"
    said = f"The environment had what {relative(listed)} lists and nothing else, in Python {version}{other}."
    return python, Note(said, replace(there, python=version))


def candidates(version: str) -> Iterator[Path]:
    """Where a Python of a version may be."""
    found = shutil.which(f"python{version}")
    if found is not None:
        yield Path(found)
    yield from sorted(
        Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob(f"versions/{version}*/bin/python3")
    )


def require_version(python: Path) -> str:
    """As :func:`version_of`.

    Raises:
        CarryError: it does not run.
    """
    version = version_of(python)
    if version is None:
        raise CarryError(f"{python} should be a Python, and does not run; give another with --there-python", 3)
    return version


def version_of(python: Path) -> str | None:
    """``3.12``; None where it does not run."""
    script = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([str(python), "-S", "-c", script], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
