"""A folder written whole or not at all, by one run at a time, replaced only when asked.

Beside a folder ``NAME`` lie, while it is written, ``.NAME.partial`` (or, where a run goes on where it stopped,
``.NAME.work``) and ``.NAME.lock``; on disks that cannot exchange two names, for a moment, ``.NAME.replaced``.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from glm_export.artifacts.exchange import exchange
from glm_export.artifacts.folder_lock import alone
from glm_export.artifacts.manifest import MARKER
from glm_export.artifacts.open import TOLD_BY, Kind, kind_of
from glm_export.artifacts.own_files import remove_own, require_all_own
from glm_export.errors import EnvironmentMissingError, GlmExportError, InputError
from glm_export.store.address import COLLAPSED

logger = logging.getLogger(__name__)
WRITTEN = (Kind.PROGRAM, Kind.ENGINE)

_filling: set[Path] = set()
"""Folders this process is filling."""


def require_writable(out: Path, *, force: bool, kinds: Sequence[Kind] = WRITTEN, sources: Sequence[Path] = ()) -> Path:
    """Check, before any work, that an output folder may be written.

    Args:
        out: the folder. A link to a folder stands for that folder.
        force: replace one of these kinds.
        kinds: what may be replaced.
        sources: folders that are read: nothing is written into them.

    Returns:
        The folder to write; ``out`` unless that is a link.

    Raises:
        InputError: it exists and ``force`` is not given; it is something else than these kinds, or holds files that
            glm-export did not write; it cannot be a folder of its own; or it lies in a source.
    """
    out = _settled(out)
    _require_outside(out, sources)
    _restore(out)
    if not os.path.lexists(out):
        return out
    if not out.is_dir():
        raise InputError(f"{out} exists and is no folder; give another --out")
    if os.path.ismount(out):
        raise InputError(f"{out} is a mount point, which cannot be exchanged; give a folder in it, {out / 'model'}")
    if not any(out.iterdir()):
        return out
    if not force:
        raise InputError(f"{out} exists; give another --out, or --force to replace it")
    kind = kind_of(out)
    if kind is None or kind not in kinds:
        lacking = " nor ".join(TOLD_BY[kind] for kind in kinds)
        raise InputError(f"{out} holds no {lacking}, so --force does not replace it; remove it yourself")
    require_all_own(out, kind)
    return out


def _settled(out: Path) -> Path:
    """Without links and dots, where it has any."""
    if COLLAPSED.match(str(out)):
        raise InputError(
            f"{out} is a URL, and folders are written on this machine; give a path, and upload it afterwards"
        )
    if out.is_symlink():
        target = out.resolve()
        if not target.is_dir():
            raise InputError(f"{out} is a link to {target}, which is no folder; give that, or remove the link")
        return target
    if out.name in ("", ".."):
        raise InputError(f"{out} is no name for a new folder; give one, {out / 'model'}")
    above = next(parent for parent in out.absolute().parents if os.path.lexists(parent))
    if not above.is_dir():
        raise InputError(f"{out} cannot be made: {above} is no folder; give another --out")
    return out


def _require_outside(out: Path, sources: Sequence[Path]) -> None:
    real = out.resolve()
    for source in sources:
        home = source.resolve()
        if real == home:
            raise InputError(f"{out} is the folder that is read; give another --out")
        if home in real.parents:
            raise InputError(f"{out} lies in {source}, which is only read; give an --out outside of it")
        if real in home.parents:
            raise InputError(f"{out} holds {source}, which is read; give another --out")


def _restore(out: Path) -> None:
    """Give a folder its name back that an interrupted run had moved aside."""
    replaced = _beside(out, "replaced")
    if replaced.is_dir() and not replaced.is_symlink() and not os.path.lexists(out):
        with alone(out):
            if not os.path.lexists(out):
                replaced.rename(out)
                logger.warning("%s is back, which an interrupted run had moved aside", out)


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
def whole_folder(out: Path, *, force: bool = False, kinds: Sequence[Kind] = WRITTEN) -> Iterator[Path]:
    """A folder to fill that takes the name ``out`` when everything went well, and vanishes otherwise.

    What an interrupted run left behind is removed. An existing ``out`` is exchanged only after the new one is whole.

    Args:
        out: from :func:`require_writable`, which is asked again before anything is replaced.
        force: replace one of these kinds.
        kinds: what may be replaced.

    Raises:
        InputError: another run is filling the folder, or what lies there may not be replaced.
    """
    with scratch_folder(out, "partial") as partial:
        yield partial
        require_writable(out, force=force, kinds=kinds)
        (partial / MARKER).unlink()
        take_name(partial, out)


@contextmanager
def scratch_folder(out: Path, ending: str) -> Iterator[Path]:
    """A folder ``.NAME.ENDING`` beside ``out`` for as long as it is filled and read, which then vanishes.

    One that a killed run left there is removed first.

    Raises:
        InputError: another run is writing ``out``, or something that glm-export did not make bears the name.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = _beside(out, ending)
    with alone(out):
        _remove_leftovers(out)
        _filling.add(scratch)
        # Made inside: an interrupt can come between the making and the next line.
        try:
            _make_marked(scratch)
            yield scratch
        finally:
            _discard(scratch)
            _filling.discard(scratch)


def _make_marked(folder: Path) -> None:
    """Make a folder that says it is ours."""
    try:
        folder.mkdir()
    except FileExistsError as error:
        raise InputError(f"{folder} is in the way, and glm-export did not make it; move it away") from error
    (folder / MARKER).touch()


def _remove_leftovers(out: Path) -> None:
    """What killed runs left beside ``out``: only folders that are ours beyond doubt."""
    for ending in ("partial", "program", "replaced"):
        folder = _beside(out, ending)
        if folder in _filling or folder.is_symlink() or not folder.is_dir():
            continue
        if _discard(folder):
            continue
        if ending != "replaced" or os.path.lexists(out):
            _remove_replaced(folder)


def _discard(folder: Path) -> bool:
    """Remove a folder that is marked, or empty; a link is no folder. Says whether it is gone."""
    if not folder.is_symlink() and folder.is_dir() and ((folder / MARKER).is_file() or not any(folder.iterdir())):
        shutil.rmtree(folder, ignore_errors=True)
    return not os.path.lexists(folder)


def _remove_replaced(folder: Path) -> None:
    """A folder that gave its name away: its files go, and it with them unless somebody put others there."""
    kind = kind_of(folder)
    gone = False
    if kind in (*WRITTEN, Kind.RANGES, Kind.TRITON, Kind.LAYOUT):
        try:
            gone = remove_own(folder, kind)
        except GlmExportError as error:
            logger.debug("%s stays: %s", folder, error)
    elif not any(folder.iterdir()):
        folder.rmdir()
        gone = True
    if not gone:
        logger.warning("%s stays: it holds what glm-export did not write; look at it, and remove it", folder)


def take_name(whole: Path, out: Path) -> None:
    """Give a folder that is whole the name ``out``; what had it goes only then.

    One step where the disk can exchange two names. Elsewhere two: a run that is killed between them leaves both
    folders, and the next gives the old one its name back.
    """
    if not os.path.lexists(out) or not any(out.iterdir()):
        whole.rename(out)
        return
    old = whole
    if not exchange(whole, out):
        old = _beside(out, "replaced")
        out.rename(old)
        whole.rename(out)
    _remove_replaced(old)


def abandon_all() -> None:
    """Remove what this process is filling: for one that is about to end without coming back to it."""
    for folder in tuple(_filling):
        _discard(folder)


def _beside(out: Path, ending: str) -> Path:
    return out.parent / f".{out.name}.{ending}"
