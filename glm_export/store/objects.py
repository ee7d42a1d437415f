"""A folder in an object store, which lists: S3 and its kin, Google Cloud Storage, Azure; by fsspec's file systems."""

from __future__ import annotations

import base64
import errno
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from fsspec.asyn import sync
from fsspec.core import url_to_fs

from glm_export.store.address import Address
from glm_export.store.remote import BLOCK_BYTES, ChangedError, Remote, patiently, refused

PART_BYTES = 16 * BLOCK_BYTES
"""Of a file, in one request."""
VERSIONS = ("ETag", "etag", "generation", "VersionId", "version_id")
"""What file systems call the mark of a file's bytes."""
# Their last words are in our errors; tracebacks of every try before are for whoever listens.
for library in ("s3fs", "gcsfs", "adlfs"):
    logging.getLogger(library).addHandler(logging.NullHandler())


class ObjectStore:
    """Objects under a prefix. Credentials are the library's own: environment, files at home, the machine's role."""

    def __init__(self, address: Address) -> None:
        self.address = address
        try:
            self._files, self._path = self._opened()
        except Exception as error:
            raise refused(address.told, error) from error
        self._listing: Mapping[str, Remote] | None = None

    def _opened(self) -> tuple[Any, str]:
        files, path = url_to_fs(self.address.base, use_listings_cache=False, skip_instance_cache=True)
        return files, path.rstrip("/")

    def listed(self) -> Mapping[str, Remote]:
        """Objects right below the prefix."""
        entries = patiently(self.address.told, lambda: self._files.ls(self._path, detail=True, refresh=True), tries=1)
        found = {}
        for entry in entries:
            name = entry["name"].removeprefix(f"{self._path}/")
            # A folder's own marker, and what lies deeper, are no files of it.
            if entry["type"] == "file" and name and entry["name"] != self._path:
                found[name] = Remote(name=name, size=entry["size"], version=_version(entry))
        return found

    def ask(self, name: str) -> Remote | None:
        """An object as it is now."""
        what = self.address.tell(name)
        return patiently(what, lambda: self._asked(name), tries=1)

    def _asked(self, name: str) -> Remote | None:
        path = f"{self._path}/{name}"
        try:
            if self.address.scheme == "s3":
                bucket, _, key = path.partition("/")
                head = self._files.call_s3("head_object", Bucket=bucket, Key=key, ChecksumMode="ENABLED")
                size, told = head["ContentLength"], _checksum(head)
                return Remote(name=name, size=size, version=_version(head), sha256=told)
            entry = self._files.info(path, refresh=True)
        except FileNotFoundError:
            return None
        return Remote(name=name, size=entry["size"], version=_version(entry))

    def stream(self, remote: Remote, offset: int) -> tuple[int, Iterator[bytes]]:
        """Bytes from ``offset`` on, some at a request."""
        return offset, self._blocks(remote, offset)

    def _blocks(self, remote: Remote, offset: int) -> Iterator[bytes]:
        path, size = f"{self._path}/{remote.name}", remote.size
        if size is None:
            entry = self._files.info(path)
            size = entry["size"]
        while offset < size:
            stop = min(offset + PART_BYTES, size)
            try:
                part = self._part(path, remote, offset, stop)
            except FileNotFoundError as error:
                raise ChangedError(f"{self.address.tell(remote.name)} is not there, and should be") from error
            except OSError as error:
                if error.errno == errno.EINVAL:  # S3's answer to IfMatch, by way of s3fs
                    raise ChangedError(f"{self.address.tell(remote.name)} changed while it was read") from error
                raise
            except Exception as error:
                # A body that breaks off is none of the system's errors.
                raise ConnectionError(f"{type(error).__name__}: {error}") from error
            if not part:
                return
            offset += len(part)
            yield part

    def _part(self, path: str, remote: Remote, start: int, stop: int) -> bytes:
        if self.address.scheme != "s3":
            return bytes(self._files.cat_file(path, start=start, end=stop))
        bucket, _, key = path.partition("/")
        # S3 refuses another version by itself.
        same = {"IfMatch": remote.version} if remote.version and remote.sha256 is None else {}
        answer = self._files.call_s3("get_object", Bucket=bucket, Key=key, Range=f"bytes={start}-{stop - 1}", **same)
        return bytes(sync(self._files.loop, answer["Body"].read))


def _version(entry: Mapping[str, Any]) -> str | None:
    return next((str(entry[key]) for key in VERSIONS if entry.get(key)), None)


def _checksum(head: Mapping[str, Any]) -> str | None:
    """The sha256 that was uploaded with an object, where it is one of all its bytes."""
    told = head.get("ChecksumSHA256")
    if not told or head.get("ChecksumType") == "COMPOSITE" or "-" in told:
        return None
    return base64.b64decode(told).hex()
