"""Two folders exchange their names in one step, where the system can; so none is ever without its folder."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

CANNOT = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM)
AT_FDCWD = -100
RENAME_EXCHANGE = 2
"""Of ``renameat2(2)`` on Linux, and ``RENAME_SWAP`` of ``renamex_np(2)`` on macOS."""


def exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two folders on one disk.

    Returns:
        Whether it was done; False where the system or the file system has no such call.

    Raises:
        OSError: it has, and one of the two is not there or may not be renamed.
    """
    library = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    if sys.platform == "linux" and hasattr(library, "renameat2"):
        failed = library.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE)
    elif sys.platform == "darwin" and hasattr(library, "renamex_np"):
        failed = library.renamex_np(names[0], names[1], RENAME_EXCHANGE)
    else:
        return False
    if not failed:
        return True
    number = ctypes.get_errno()
    if number in CANNOT:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))
