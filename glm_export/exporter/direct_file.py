"""Writing a file far larger than memory: past the page cache, in large aligned blocks.

Through the page cache, 12.5 GB of weights evict the checkpoint they are read from, and the kernel spends more time on
reclaiming pages than on writing: 24 s of CPU against 8 s (ChatGLM2-6B, 24 GB machine; ``benchmarks/export``).
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

# Direct writes need blocks aligned to the disk's sectors; 4 KiB covers every disk in use.
SECTOR_BYTES = 4096
BLOCK_BYTES = 1 << 24
CANNOT = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP)


class DirectFile:
    """A new file written front to back. Use it in a ``with`` block: leaving it sets the final size.

    Where the file system refuses direct writes (tmpfs, some network disks), they go through the page cache.
    """

    def __init__(self, path: Path, size: int) -> None:
        """Create the file and reserve its space, so that a full disk shows at once.

        Args:
            path: replaced if it exists.
            size: bytes that will be written.

        Raises:
            OSError: the disk is full, or the folder is not writable.
        """
        self._written = 0
        self._filled = 0
        self.seconds = 0.0
        """Time spent waiting for the disk, and for hashes."""
        # Anonymous mappings are aligned to pages, as direct writes demand of memory too. One is filled while the other
        # is written and hashed.
        self._block, self._other = mmap.mmap(-1, BLOCK_BYTES), mmap.mmap(-1, BLOCK_BYTES)
        self._digest = hashlib.sha256()
        self._pool = ThreadPoolExecutor(2)
        self._running: list[Future[None]] = []
        self._file = _open(path)
        try:
            _reserve(self._file, size)
        except BaseException:
            os.close(self._file)
            raise

    @property
    def sha256(self) -> str:
        """Of what was written, in hexadecimal; whole once the ``with`` block is left."""
        return self._digest.hexdigest()

    @property
    def position(self) -> int:
        """Bytes taken so far, written or not."""
        return self._written + self._filled

    def pad_to(self, offset: int) -> None:
        """Zeros up to ``offset``."""
        self.write(memoryview(bytes(offset - self.position)))

    def write(self, data: memoryview) -> None:
        """Append bytes."""
        while data:
            count = min(len(data), BLOCK_BYTES - self._filled)
            self._block[self._filled : self._filled + count] = data[:count]
            self._filled += count
            data = data[count:]
            if self._filled == BLOCK_BYTES:
                self._flush(BLOCK_BYTES)

    def _flush(self, count: int) -> None:
        """Let the block's first bytes be written, and those that were filled be hashed; go on with the other block."""
        self._settle()
        self._running = [
            self._pool.submit(_write, self._file, self._block, count),
            self._pool.submit(_hash, self._digest, self._block, self._filled),
        ]
        self._block, self._other = self._other, self._block
        self._written += count
        self._filled = 0

    def _settle(self) -> None:
        """Wait for what runs.

        Raises:
            OSError: it could not be written.
        """
        started = time.perf_counter()
        for running in self._running:
            running.result()
        self.seconds += time.perf_counter() - started
        self._running = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                end = self.position
                self._flush(-(-self._filled // SECTOR_BYTES) * SECTOR_BYTES)
                self._settle()
                os.ftruncate(self._file, end)
        finally:
            # What runs holds the blocks and the file, however this ends.
            self._pool.shutdown()
            os.close(self._file)
            for block in (self._block, self._other):
                block.close()


def _write(file: int, block: mmap.mmap, count: int) -> None:
    with memoryview(block) as data:
        done = 0
        while done < count:
            done += os.write(file, data[done:count])


def _hash(digest: hashlib._Hash, block: mmap.mmap, count: int) -> None:
    with memoryview(block) as data:
        digest.update(data[:count])


def _open(path: Path) -> int:
    flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC
    try:
        return os.open(path, flags | getattr(os, "O_DIRECT", 0), 0o644)
    except OSError as error:
        if error.errno not in CANNOT:
            raise
        return os.open(path, flags, 0o644)


def _reserve(file: int, size: int) -> None:
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        # Some file systems cannot reserve; there the writes themselves will tell.
        if error.errno not in CANNOT:
            raise
