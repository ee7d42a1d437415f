"""The cache on disk: bytes once by their hash, and folders of hard links to them.

::

    blobs/SHA256                     bytes of a file, read-only; the name is what they hash to
    folders/KEY/                     of one URL
        seen.json                    what the store called which bytes
        partial/NAME, NAME.json      on the way, and which bytes they are to be
        views/VIEW/NAME/             a whole folder: hard links to blobs
        views/VIEW/record.json       its files, and whence
    locks/KEY.lock                   held by who fetches; the system gives it up however that ends

A blob has a second link from the moment it has its name; one without is in no folder, and may go.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm_export.errors import EnvironmentMissingError, InputError
from glm_export.model_folder import file_sha256, load_json
from glm_export.progress import Advance

CACHE_VARIABLE = "GLM_EXPORT_CACHE"
RECORD, SEEN = "record.json", "seen.json"
RECORD_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A file of a cached folder: its hash, its bytes, and when it was last written, in nanoseconds."""

    sha256: str
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A whole folder in the cache. ``folder``: holds its files. ``pin``: sha256 of the list that names them."""

    folder: Path
    url: str
    pin: str
    files: Mapping[str, Link]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(link.size for link in self.files.values())

    @property
    def used(self) -> float:
        """When it was last opened, in seconds since 1970."""
        return (self.folder.parent / RECORD).stat().st_mtime

    def touch(self) -> None:
        """It is opened now; a cache that is only read need not remember."""
        with contextlib.suppress(OSError):
            os.utime(self.folder.parent / RECORD)

    def damaged(self, *, thorough: bool = False, advance: Advance = lambda _: None) -> str | None:
        """A file that is not what arrived; None where all are.

        Args:
            thorough: hash all of them, not those alone that somebody wrote to since.
            advance: is told bytes that were read.
        """
        for name, link in self.files.items():
            path = self.folder / name
            try:
                found = path.lstat()
            except FileNotFoundError:
                return name
            if found.st_size != link.size:
                return name
            if (thorough or found.st_mtime_ns != link.mtime_ns) and file_sha256(path, advance) != link.sha256:
                return name
        return None


class Cache:
    """Where folders behind URLs lie on this machine. Whoever may write there may replace what is in it.

    Args:
        root: the folder; None takes ``GLM_EXPORT_CACHE``, or ``glm-export`` among the user's caches.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or usual_root()).absolute()

    @property
    def blobs(self) -> Path:
        """Files by their hash."""
        return self.root / "blobs"

    def home(self, key: str) -> Path:
        """What belongs to one URL."""
        return self.root / "folders" / key

    def make(self, key: str) -> None:
        """Make the folders that a download needs.

        Raises:
            EnvironmentMissingError: they cannot be.
        """
        try:
            for folder in (self.blobs, self.root / "locks", self.home(key) / "partial", self.home(key) / "views"):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EnvironmentMissingError(
                f"the cache {self.root} cannot be written ({error.strerror}); set {CACHE_VARIABLE} to a folder that can"
            ) from error

    def lock(self, key: str, *, wait: bool = True) -> Any:
        """The lock of a URL, to be held in a ``with``; a killed holder's is free.

        Raises:
            InputError: it is held, and nobody is to wait.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self.root / "locks" / f"{key}.lock", timeout=-1 if wait else 0, thread_local=False)
        if not wait:
            try:
                lock.acquire()
            except Timeout as error:
                raise InputError("another process is fetching it; wait until it is done") from error
        return lock

    def views(self, key: str | None = None) -> list[View]:
        """Whole folders, of one URL or of all, the one that was used last first."""
        folders = self.root / "folders"
        homes = [self.home(key)] if key else sorted(folders.iterdir()) if folders.is_dir() else []
        found = []
        for home in homes:
            for folder in sorted((home / "views").glob("*")):
                view = read_view(folder)
                if view is not None:
                    found.append(view)
        return sorted(found, key=lambda view: -view.used)

    def partial_bytes(self) -> int:
        """What lies there of downloads that were cut off, or go on now."""
        return sum(path.stat().st_size for path in (self.root / "folders").glob("*/partial/*"))

    def remove_view(self, view: View) -> None:
        """Take a folder out of the cache; its bytes stay for the next. A process that has files open keeps them."""
        home = view.folder.parent
        # Under no name it could be opened by, before the first file goes.
        leaving = home.with_name(f".{home.name}")
        home.rename(leaving)
        shutil.rmtree(leaving)

    def sweep(self) -> int:
        """Remove bytes that are in no folder; says how many."""
        freed = 0
        for path in self.blobs.iterdir() if self.blobs.is_dir() else ():
            with contextlib.suppress(FileNotFoundError):
                found = path.stat()
                if found.st_nlink == 1:
                    path.unlink()
                    freed += found.st_size
        return freed

    def clear(self, key: str) -> None:
        """Remove all that belongs to a URL; its lock is held."""
        shutil.rmtree(self.home(key), ignore_errors=True)

    def seen(self, key: str) -> dict[str, dict[str, str]]:
        """By name: the version a store told, and the hash of what arrived then."""
        with contextlib.suppress(OSError, ValueError):
            values = load_json(self.home(key) / SEEN)
            if isinstance(values, dict):
                return {name: entry for name, entry in values.items() if isinstance(entry, dict)}
        return {}

    def remember(self, key: str, seen: Mapping[str, Mapping[str, str]]) -> None:
        """Write what :meth:`seen` reads, whole."""
        write_whole(self.home(key) / SEEN, seen)


def usual_root() -> Path:
    """``GLM_EXPORT_CACHE``, or ``glm-export`` in ``XDG_CACHE_HOME`` or ``~/.cache``."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given).expanduser()
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache") / "glm-export"


def read_view(folder: Path) -> View | None:
    """A folder of ``views/`` by its record; None where it has none of this version."""
    try:
        record = load_json(folder / RECORD)
        if folder.name.startswith(".") or record["format"] != RECORD_FORMAT:
            return None
        return View(
            folder=folder / Path(record["name"]).name,
            url=record["url"],
            pin=record["pin"],
            files={Path(name).name: Link(**link) for name, link in record["files"].items()},
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def write_view(folder: Path, view: View) -> None:
    """Write a folder's record; its place is ``folder``."""
    files = {
        name: {"sha256": link.sha256, "size": link.size, "mtime_ns": link.mtime_ns} for name, link in view.files.items()
    }
    record = {"format": RECORD_FORMAT, "url": view.url, "name": view.folder.name, "pin": view.pin, "files": files}
    write_whole(folder / RECORD, record)


def write_whole(path: Path, values: Any) -> None:
    """JSON under its name only when all of it is on disk."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(values, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


@contextlib.contextmanager
def emptied(folder: Path) -> Iterator[Path]:
    """A folder for a while, without what an earlier run left in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
