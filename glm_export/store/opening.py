"""From a URL to a folder on this machine: planned, fetched once for all processes, linked together, opened again."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from glm_export.errors import CheckpointError, EnvironmentMissingError, InputError
from glm_export.model_folder import JSON_BYTES, file_sha256
from glm_export.progress import Advance, NullProgress, Progress
from glm_export.store.address import Address, parse_address
from glm_export.store.cache import Cache, Link, View, emptied, write_view
from glm_export.store.download import Download, StoppedError
from glm_export.store.names import require_names, sums_text
from glm_export.store.plan import Ours, Plan, plan_of
from glm_export.store.remote import ChangedError, Remote, Store, open_store

logger = logging.getLogger(__name__)
FILES_AT_ONCE = 4
_opened: dict[tuple[Path, str], View] = {}
_opening = threading.Lock()


def open_url(url: str, ours: Ours, *, cache: Cache | None = None, progress: Progress | None = None) -> View:
    """The folder behind a URL, on this machine; in one process it stays the one that was opened first.

    Args:
        url: see :func:`glm_export.store.address.parse_address`.
        ours: how folders that glm-export wrote are told.
        cache: where it lies; the user's if left out.
        progress: shows bytes as they arrive.

    Raises:
        InputError: the URL names no model folder, or another version than is pinned.
        CheckpointError: what lies there is damaged, unsafe, or changes while it is read.
        EnvironmentMissingError: a package, the network, the right to read, or disk space is missing.
    """
    address, cache = parse_address(url), cache or Cache()
    with _opening:
        view = _opened.get((cache.root, url))
        if view is None or not view.folder.is_dir():
            view = _opened[cache.root, url] = _open(address, ours, cache, progress or NullProgress())
        return view


def _open(address: Address, ours: Ours, cache: Cache, progress: Progress) -> View:
    pinned = _pinned(address, cache)
    if pinned is not None:
        return pinned
    store = open_store(address)
    cache.make(address.key)
    with _alone(address, cache):
        # Whoever had the lock may have fetched it.
        view = _pinned(address, cache)
        for again in (True, False):
            if view is not None:
                break
            try:
                view = _Fetch(store=store, ours=ours, cache=cache, progress=progress).run()
            except ChangedError as error:
                if not again:
                    raise
                logger.warning("%s; read again", error)
    assert view is not None
    view.touch()
    return view


def _pinned(address: Address, cache: Cache) -> View | None:
    """A whole folder of the version that is asked for; the store need not be."""
    if address.pin is None:
        return None
    for view in cache.views(address.key):
        if view.pin == address.pin and _sound(view, cache):
            logger.info("%s: in the cache, %s; the store is not asked", address.told, view.folder)
            view.touch()
            return view
    return None


def _sound(view: View, cache: Cache) -> bool:
    """Whether a folder's files are as they arrived; one whose are not leaves the cache."""
    damaged = view.damaged()
    if damaged is None:
        return True
    logger.warning("%s in the cache is damaged or was changed; it is fetched again", view.folder / damaged)
    drop(view, cache)
    return False


def drop(view: View, cache: Cache) -> None:
    """Take a damaged folder out of the cache, and its damaged bytes out of every other."""
    for name, link in view.files.items():
        path = cache.blobs / link.sha256
        if path.is_file() and (path.stat().st_size != link.size or file_sha256(path) != link.sha256):
            logger.debug("%s is damaged", name)
            path.unlink()
    cache.remove_view(view)


@contextmanager
def _alone(address: Address, cache: Cache) -> Iterator[None]:
    try:
        lock = cache.lock(address.key, wait=False)
    except InputError:
        logger.warning("%s is being fetched by another process; waiting for it", address.told)
        lock = cache.lock(address.key)
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        raise EnvironmentMissingError(
            f"the cache {cache.root} lies on a file system without locks ({error}); set GLM_EXPORT_CACHE to another"
        ) from error
    try:
        yield
    finally:
        lock.release()


@dataclass(slots=True, kw_only=True)
class _Fetch:
    """One folder on its way; the lock of its URL is held."""

    store: Store
    ours: Ours
    cache: Cache
    progress: Progress
    stop: threading.Event = field(default_factory=threading.Event)
    arrived: dict[str, Link] = field(default_factory=dict)
    had: dict[str, str] = field(default_factory=dict)

    @property
    def address(self) -> Address:
        return self.store.address

    @property
    def _home(self) -> Path:
        return self.cache.home(self.address.key)

    def run(self) -> View:
        """Plan, fetch what is missing, and put the folder together."""
        seen = self.cache.seen(self.address.key)
        self.had = {f"{name}\0{entry.get('version')}": entry.get("sha256", "") for name, entry in seen.items()}
        with emptied(self._home / "staging") as staging:
            files = staging / self.address.name
            files.mkdir()
            plan = plan_of(self.store, self.ours, self.address.pin, lambda remote: self._read(remote, files))
            require_names([remote.name for remote in plan.files], self.address.told)
            plan = replace(plan, files=tuple(map(self._known, plan.files)))
            logger.info(
                "%s: %d files, %d bytes as the store says",
                self.address.told,
                len(plan.files),
                sum(remote.size or 0 for remote in plan.files),
            )
            self._fetch(plan, files)
            self._require_unchanged(plan)
            pin = plan.list_sha256 or self._made_pin()
            told = {
                remote.name: {"version": remote.version, "sha256": self.arrived[remote.name].sha256}
                for remote in plan.files
                if remote.version is not None
            }
            view = self._linked(staging, pin)
            self.cache.remember(self.address.key, told)
        shutil.rmtree(self._home / "partial", ignore_errors=True)
        return view

    def _known(self, remote: Remote) -> Remote:
        """With the hash of what arrived when the store told the same version."""
        digest = self.had.get(f"{remote.name}\0{remote.version}") if remote.version is not None else None
        return replace(remote, sha256=digest) if digest and remote.sha256 is None else remote

    def _read(self, remote: Remote, files: Path) -> bytes:
        """A list, fetched like any file."""
        if remote.size is not None and remote.size > JSON_BYTES:
            raise CheckpointError(f"{self.address.tell(remote.name)} has more than {JSON_BYTES >> 20} MiB; refused")
        self._one(self._known(remote), files, lambda _: None, "the store", at_most=JSON_BYTES)
        return (files / remote.name).read_bytes()

    def _fetch(self, plan: Plan, files: Path) -> None:
        """Everything that is not there yet, some files at once, the largest first."""
        left = [remote for remote in plan.files if remote.name not in self.arrived]
        total = sum(remote.size or 0 for remote in left)
        self._require_room(left)
        advance = self.progress.task(f"fetching {self.address.name}", total)
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            running = [
                pool.submit(self._one, remote, files, advance, plan.told_by)
                for remote in sorted(left, key=lambda remote: -(remote.size or 0))
            ]
            try:
                wait(running, return_when=FIRST_EXCEPTION)
            finally:
                # Also after Ctrl-C: what is not begun is not, and what is ends at its next block.
                if not all(one.done() and one.exception() is None for one in running):
                    self.stop.set()
                    pool.shutdown(wait=True, cancel_futures=True)
        _raise_first(running)

    def _require_room(self, left: list[Remote]) -> None:
        lacking = [remote for remote in left if not (remote.sha256 and (self.cache.blobs / remote.sha256).is_file())]
        parts = (self._home / "partial" / remote.name for remote in lacking)
        needed = sum(remote.size or 0 for remote in lacking) - sum(
            part.stat().st_size for part in parts if part.is_file()
        )
        free = shutil.disk_usage(self.cache.root).free
        if needed > free:
            raise EnvironmentMissingError(
                f"{self.address.told} needs {needed / 1e9:.2f} GB, and the disk of the cache {self.cache.root} has "
                f"{free / 1e9:.2f} GB free; free space ('glm-export cache remove'), or set GLM_EXPORT_CACHE to another"
            )

    def _one(self, remote: Remote, files: Path, advance: Advance, told_by: str, at_most: int | None = None) -> None:
        """Fetch a file, or take it from the cache, and link it into the folder."""
        if self.stop.is_set():
            raise StoppedError
        target = files / remote.name
        if remote.sha256 is not None and self._reused(remote, target):
            logger.debug("%s: taken from the cache", remote.name)
            advance(remote.size or 0)
            return
        # Nobody has the lock but this process, and names differ.
        part = self._home / "partial" / remote.name
        part.parent.mkdir(exist_ok=True)
        download = Download(
            store=self.store,
            remote=remote,
            part=part,
            told_by=told_by,
            at_most=at_most,
            advance=advance,
            stop=self.stop,
        )
        digest = download.run()
        link_into(part, target)
        # Bytes that were there and damaged are replaced; those of another URL's are the same.
        part.replace(self.cache.blobs / digest)
        self._arrive(remote, target, digest)

    def _reused(self, remote: Remote, target: Path) -> bool:
        """Link bytes that are in the cache, where they are still what they are called."""
        blob = self.cache.blobs / str(remote.sha256)
        try:
            if remote.size not in (None, blob.stat().st_size) or not self._is_known(blob, str(remote.sha256)):
                return False
            link_into(blob, target)
        except FileNotFoundError:
            return False
        self._arrive(remote, target, str(remote.sha256))
        return True

    def _is_known(self, blob: Path, digest: str) -> bool:
        """Whether a file has a hash, without reading it where it is as a folder of this URL recorded it."""
        found = blob.stat()
        for view in self.cache.views(self.address.key):
            for link in view.files.values():
                if link.sha256 == digest and (link.size, link.mtime_ns) == (found.st_size, found.st_mtime_ns):
                    return True
        return file_sha256(blob) == digest

    def _arrive(self, remote: Remote, target: Path, digest: str) -> None:
        found = target.stat()
        self.arrived[remote.name] = Link(sha256=digest, size=found.st_size, mtime_ns=found.st_mtime_ns)

    def _require_unchanged(self, plan: Plan) -> None:
        """See that files which only the store vouches for were of one version from first to last."""
        asked = [remote for remote in plan.files if remote.version is not None and not self._told_beforehand(remote)]
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            for before, now in zip(asked, pool.map(self.store.ask, [remote.name for remote in asked]), strict=True):
                if now is None or now.version != before.version:
                    raise ChangedError(f"{self.address.tell(before.name)} changed while the folder was read")

    def _told_beforehand(self, remote: Remote) -> bool:
        """A hash that does not come from an earlier look at the same store."""
        return remote.sha256 is not None and f"{remote.name}\0{remote.version}" not in self.had

    def _made_pin(self) -> str:
        """Of a folder without a list: the hash of the one that ``sha256sum`` would make.

        Raises:
            InputError: another is asked for.
        """
        made = hashlib.sha256(
            sums_text({name: link.sha256 for name, link in self.arrived.items()}).encode()
        ).hexdigest()
        if self.address.pin not in (None, made):
            raise InputError(
                f"{self.address.told} arrived as sha256={made}, and {self.address.pin} is asked for: another version "
                "lies there; give the URL that is meant, or its new #sha256="
            )
        return made

    def _linked(self, staging: Path, pin: str) -> View:
        """Give the folder its name, with its record in it."""
        text = sums_text({name: link.sha256 for name, link in self.arrived.items()})
        home = self._home / "views" / hashlib.sha256(f"{pin}\n{text}".encode()).hexdigest()[:32]
        folder = home / self.address.name
        view = View(folder=folder, url=self.address.told, pin=pin, files=dict(sorted(self.arrived.items())))
        there = next((one for one in self.cache.views(self.address.key) if one.folder == folder), None)
        if there is not None and _sound(there, self.cache):
            return there
        shutil.rmtree(home, ignore_errors=True)
        write_view(staging, view)
        staging.rename(home)
        return view


def link_into(path: Path, target: Path) -> None:
    """A hard link.

    Raises:
        EnvironmentMissingError: the file system has none.
    """
    try:
        target.unlink(missing_ok=True)
        os.link(path, target)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise EnvironmentMissingError(
            f"{target.parent} lies on a file system without hard links ({error.strerror}); set GLM_EXPORT_CACHE to a "
            "folder on another"
        ) from error


def _raise_first(running: list[Future[None]]) -> None:
    """The error that stopped the others."""
    errors = [one.exception() for one in running if not one.cancelled()]
    for error in errors:
        if error is not None and not isinstance(error, StoppedError):
            raise error
