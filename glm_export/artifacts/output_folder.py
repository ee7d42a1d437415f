"""A folder written whole or not at all, by one run at a time, replaced only when asked."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from glm_export.errors import EnvironmentMissingError, InputError

if sys.platform != "win32":
    import fcntl

from glm_export.artifacts.open import TOLD_BY, Kind, kind_of


def require_writable(out: Path, *, force: bool, kinds: Sequence[Kind] = (Kind.PROGRAM, Kind.ENGINE)) -> None:
    """Check that an output folder may be written.

    Args:
        out: the folder.
        force: replace one of these kinds.
        kinds: what may be replaced.

    Raises:
        InputError: it exists and ``force`` is not given, or it is something else than these kinds.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not force:
        raise InputError(f"{out} exists; give another --out, or --force to replace it")
    if kind_of(out) not in kinds:
        lacking = " nor ".join(TOLD_BY[kind] for kind in kinds)
        raise InputError(f"{out} holds no {lacking}, so --force does not replace it; remove it yourself")


def free_disk_for(out: Path, needed: int, what: str) -> int:
    """Free bytes of the disk that ``out`` will lie on.

    Args:
        out: a folder to write, which need not exist.
        needed: bytes.
        what: says who needs them, e.g. ``the export needs``.

    Raises:
        EnvironmentMissingError: there are fewer than needed.
    """
    home = next(parent for parent in (out, *out.absolute().parents) if parent.exists())
    free = shutil.disk_usage(home).free
    if needed > free:
        raise EnvironmentMissingError(
            f"{what} {needed / 1e9:.2f} GB, and the disk of {home} has {free / 1e9:.2f} GB free; "
            "free space or choose another --out"
        )
    return free


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to fill that takes the name ``out`` when everything went well, and vanishes otherwise.

    What an interrupted run left behind is replaced. An existing ``out`` is swapped only after the new one is whole.

    Raises:
        InputError: another run is filling the folder.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.parent / f".{out.name}.partial"
    with _alone(out, out.parent / f".{out.name}.lock"):
        # Made inside: an interrupt can come between the making and the next line.
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            yield partial
            take_name(partial, out)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def take_name(whole: Path, out: Path) -> None:
    """Give a folder that is whole the name ``out``; what had it goes only then.

    Two renames on one disk: a process killed between them leaves both folders, and the next run tidies up.
    """
    replaced = out.parent / f".{out.name}.replaced"
    shutil.rmtree(replaced, ignore_errors=True)
    if out.exists():
        out.rename(replaced)
    whole.rename(out)
    shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def _alone(out: Path, lock: Path) -> Iterator[None]:
    """Hold a lock that the system gives up when the process ends, however it ends."""
    if sys.platform == "win32":
        yield
        return
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"another run is writing {out}; wait for it, or give another --out") from error
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
