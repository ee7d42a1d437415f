"""One file on its way into the cache: hashed as it arrives, gone on with after a break, never half under its name."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from glm_export.errors import CheckpointError, EnvironmentMissingError
from glm_export.model_folder import HASH_BLOCK_BYTES, load_json
from glm_export.progress import Advance
from glm_export.store.cache import write_whole
from glm_export.store.remote import FIRST_WAIT_SECONDS, TRIES, Remote, Store, unreachable

logger = logging.getLogger(__name__)
SAVED_BYTES = 32 << 20
"""Written between two moments from which a download goes on even where the machine lost its power."""


class StoppedError(Exception):
    """Another file failed, and this one need not be read on."""


@dataclass(slots=True, kw_only=True)
class Download:
    """A file that is fetched. Make one, and :meth:`run` it.

    ``part``: where it lies meanwhile, with ``part.json`` beside it. ``at_most``: bytes that are taken, where the store
    does not say. ``stop``: set where it is to end.
    """

    store: Store
    remote: Remote
    part: Path
    told_by: str
    at_most: int | None = None
    advance: Advance = lambda _: None
    stop: threading.Event = field(default_factory=threading.Event)
    _size: int = 0
    _digest: Any = None

    @property
    def _what(self) -> str:
        return self.store.address.tell(self.remote.name)

    def run(self) -> str:
        """Fetch it; says its sha256. ``part`` is then whole, on disk, and read-only.

        Raises:
            CheckpointError: other bytes arrived than were told; none of them are kept.
            ChangedError: it changed meanwhile.
            EnvironmentMissingError: the store or the disk gives up; what arrived is kept.
        """
        resumed = self._attempt(fresh=False)
        if self._wrong() and resumed:
            # What an earlier run had left may have been at fault.
            self._attempt(fresh=True)
        wrong = self._wrong()
        if wrong:
            self._discard()
            raise CheckpointError(wrong)
        self.part.chmod(0o444)
        self._meta.unlink(missing_ok=True)
        return str(self._digest.hexdigest())

    @property
    def _meta(self) -> Path:
        return self.part.with_name(f"{self.part.name}.json")

    def _discard(self) -> None:
        self.part.unlink(missing_ok=True)
        self._meta.unlink(missing_ok=True)

    def _wrong(self) -> str | None:
        """What is wrong with what arrived."""
        remote = self.remote
        if remote.size is not None and self._size != remote.size:
            return f"{self._what} should have {remote.size} bytes, and {self._size} arrived; upload it again"
        found = self._digest.hexdigest()
        if remote.sha256 is not None and found != remote.sha256:
            return (
                f"{self._what} has sha256 {found}, and {self.told_by} says {remote.sha256}; nothing of it was kept: "
                "upload it again, or ask who changed it"
            )
        return None

    def _attempt(self, *, fresh: bool) -> bool:
        """Read until the end; says whether it began with what an earlier run had left."""
        self._size, self._digest = 0, hashlib.sha256()
        kept = 0 if fresh or not self.remote.strong else self._kept()
        try:
            with self.part.open("r+b" if kept else "wb") as file:
                if kept:
                    file.truncate(kept)
                    self._hash_kept(file)
                    self.advance(kept)
                self._save(file)
                try:
                    self._read(file)
                finally:
                    self._save(file)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise EnvironmentMissingError(
                    f"the disk of {self.part.parent} is full; free some, and run it again: what arrived is kept"
                ) from error
            raise
        return kept > 0

    def _kept(self) -> int:
        """Bytes of an earlier run that may be gone on from."""
        try:
            told = load_json(self._meta)
            size = self.part.stat().st_size
            # Where the hash is known it decides; else only what was surely on disk counts.
            kept = size if self.remote.sha256 else min(size, int(told["saved"]))
            fits = told["tag"] == self.remote.tag and self.remote.size is not None and kept <= self.remote.size
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        return kept if fits else 0

    def _hash_kept(self, file: BinaryIO) -> None:
        while block := file.read(HASH_BLOCK_BYTES):
            self._digest.update(block)
            self._size += len(block)

    def _save(self, file: BinaryIO) -> None:
        if not self.part.exists():
            return
        file.flush()
        os.fsync(file.fileno())
        write_whole(self._meta, {"tag": self.remote.tag, "saved": self._size})

    def _read(self, file: BinaryIO) -> None:
        """Until the end, over as many breaks as bring something."""
        failed, furthest = 0, self._size
        while True:
            try:
                self._read_on(file)
                return
            except ConnectionError as error:
                failed = failed + 1 if self._size <= furthest else 1
                furthest = max(furthest, self._size)
                if failed >= TRIES:
                    raise unreachable(self._what, error) from error
                logger.info("%s broke after %d bytes: %s", self._what, self._size, error)
                time.sleep(FIRST_WAIT_SECONDS * 2 ** (failed - 1))

    def _read_on(self, file: BinaryIO) -> None:
        remote = self.remote
        if self._size and self._size == remote.size:
            return
        offset = self._size if remote.strong else 0
        start, blocks = self._network(lambda: self.store.stream(remote, offset))
        if start != self._size:
            file.seek(0)
            file.truncate()
            self.advance(-self._size)
            self._size, self._digest = 0, hashlib.sha256()
        most = remote.size if remote.size is not None else self.at_most
        saved = self._size
        for block in self._each(blocks):
            if most is not None and self._size + len(block) > most:
                self._discard()
                raise CheckpointError(
                    f"{self._what} should have at most {most} bytes, and more arrive; upload it again"
                )
            file.write(block)
            self._digest.update(block)
            self._size += len(block)
            self.advance(len(block))
            if self._size - saved >= SAVED_BYTES:
                self._save(file)
                saved = self._size
        if remote.size is not None and self._size < remote.size:
            raise ConnectionError(f"it ended after {self._size} of {remote.size} bytes")

    def _each(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        try:
            while not self.stop.is_set():
                block = self._network(lambda: next(blocks, None))
                if block is None:
                    return
                yield block
        finally:
            close = getattr(blocks, "close", None)
            if close is not None:
                close()
        raise StoppedError

    def _network(self, call: Any) -> Any:
        """A call of the store, whose errors are told from the disk's."""
        try:
            return call()
        except PermissionError as error:
            raise EnvironmentMissingError(f"{self._what} may not be read: {error}; see the credentials") from error
        except OSError as error:
            raise ConnectionError(str(error) or type(error).__name__) from error
