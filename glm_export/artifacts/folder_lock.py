"""One run at a time on a folder that is written, by a lock that the system gives up however the run ends."""

from __future__ import annotations

import errno
import os
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from glm_export.errors import EnvironmentMissingError, InputError

if sys.platform != "win32":
    import fcntl

_held: dict[Path, int] = {}
"""Locks of this process, and the thread that took each."""


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Hold the lock of a folder; a run that holds it already may take it again.

    The lock is the file ``.NAME.lock`` beside the folder. It is never followed where it is a link, and never emptied.

    Args:
        out: the folder, which need not exist.

    Raises:
        InputError: another run holds it, or something that is no file of ours is in the way.
        EnvironmentMissingError: the folder beside which it would lie cannot be written.
    """
    lock = (out.parent / f".{out.name}.lock").absolute()
    thread = threading.get_ident()
    if _held.get(lock) == thread or sys.platform == "win32":
        yield
        return
    descriptor = _taken(lock, out)
    _held[lock] = thread
    try:
        yield
    finally:
        try:
            # Before it is given up: whoever waits for it then finds that the name is gone, and takes a new one.
            lock.unlink(missing_ok=True)
        finally:
            del _held[lock]
            os.close(descriptor)


def _taken(lock: Path, out: Path) -> int:
    """The descriptor of the lock file, which is locked and still bears the name."""
    while True:
        descriptor = _opened(lock)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _still_named(descriptor, lock):
                return descriptor
        except OSError as error:
            os.close(descriptor)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise EnvironmentMissingError(
                    f"{lock} cannot be locked on this file system ({error.strerror}); choose an --out on another"
                ) from error
            raise InputError(f"another run is writing {out}; wait for it, or give another --out") from error
        os.close(descriptor)


def _opened(lock: Path) -> int:
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and not os.path.lexists(lock):
            raise EnvironmentMissingError(
                f"{lock.parent} cannot be written ({error.strerror}); choose another --out, or change its permissions"
            ) from error
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.EACCES, errno.EPERM):
            raise _in_the_way(lock) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _in_the_way(lock)
    return descriptor


def _in_the_way(lock: Path) -> InputError:
    return InputError(f"{lock} should be a lock file of glm-export and is a link or something else; remove it")


def _still_named(descriptor: int, lock: Path) -> bool:
    """Whether the run that had it before did not remove the file meanwhile."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(lock))
    except FileNotFoundError:
        return False
