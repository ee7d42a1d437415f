"""A file that is cut short while it is mapped ends a process by SIGBUS, which no exception tells: a line does."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

MESSAGE = (
    "Error: a file that was being read was cut short, or its disk failed (bus error); nothing was written: see that it "
    "is complete, and run it again\n"
)
EXIT_CODE = 2

_kept: list[object] = []
"""The handler: C holds its address alone."""


def announce_bus_errors(before_the_end: Callable[[], None]) -> None:
    """From now on SIGBUS prints a line and ends the process with exit code 2. For programs, not for a library's host.

    Python's own handlers run between two of its instructions, and there is no next one: the read that failed would be
    tried again for ever. So this one is C's, and does not come back.

    Args:
        before_the_end: cleans up; called with whatever lock the failing read holds.
    """
    if sys.platform == "win32":
        return

    def ended(_: int) -> None:
        try:
            os.write(2, MESSAGE.encode())
            before_the_end()
        finally:
            os._exit(EXIT_CODE)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(ended)
    _kept.append(handler)
    library = ctypes.CDLL(None)
    library.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    library.signal.restype = ctypes.c_void_p
    library.signal(int(signal.SIGBUS), ctypes.cast(handler, ctypes.c_void_p))
