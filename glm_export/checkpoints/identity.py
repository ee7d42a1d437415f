"""Which checkpoint is this? Asked in one place, of whatever was made from one: programs, engines, ranges."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm_export.errors import CheckpointError
from glm_export.model_folder import file_sha256

FINGERPRINT_BYTES, FINGERPRINT_PLACES = 1 << 16, 64


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What the system says of a file, by which a change is noticed without reading it."""

    device: int
    inode: int
    size: int
    modified_ns: int

    @classmethod
    def of(cls, path: Path) -> FileStamp:
        """Of a file as it is now. Raises OSError where there is none."""
        found = path.stat()
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def require_unchanged(stamps: Mapping[Path, FileStamp]) -> None:
    """See that files are still those that were opened.

    Args:
        stamps: taken before they were.

    Raises:
        CheckpointError: one was replaced, written to, or is gone: what was read of it is of two minds.
    """
    for path, before in stamps.items():
        try:
            after = FileStamp.of(path)
        except FileNotFoundError:
            raise CheckpointError(f"{path} was removed while it was read; download it again, and repeat this") from None
        if after != before:
            raise CheckpointError(
                f"{path} changed while it was read ({before.size:,} bytes when it was opened, {after.size:,} now); "
                "nothing was written, repeat this when it is complete"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointIdentity:
    """The files a checkpoint consists of. ``config``: its ``config.json``; ``weights``: in name order.

    ``adapters``: config and weights of each, in the order they were given; ``adapter_weights``: what each is multiplied
    by.

    Two ways to recognise it: hashes of whole files, which an export makes anyway, and a fingerprint, which takes
    milliseconds whatever the size.
    """

    config: Path
    weights: tuple[Path, ...]
    adapters: tuple[Path, ...] = ()
    adapter_weights: tuple[float, ...] = ()

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.config.parent

    @property
    def name(self) -> str:
        """The folder's name, as people call the checkpoint."""
        return self.folder.absolute().name

    def hashes(self, advance: Callable[[int], None] = lambda _: None) -> dict[str, str]:
        """sha256 of config and weight files, as hexadecimal, by file name.

        Args:
            advance: told the bytes read so far, for a progress bar.
        """
        own = {path.name: file_sha256(path, advance) for path in (self.config, *self.weights)}
        return own | {_beside(path): file_sha256(path, advance) for path in self.adapters}

    def fingerprint(self) -> str:
        """sha256, as hexadecimal, over config.json, and each weight file's name, size and 64 places."""
        digest = hashlib.sha256(self.config.read_bytes())
        for path in (*self.weights, *self.adapters):
            size = path.stat().st_size
            digest.update(f"{path.name} {size}\n".encode())
            with path.open("rb") as file:
                for place in range(FINGERPRINT_PLACES):
                    file.seek(max(0, size - FINGERPRINT_BYTES) * place // (FINGERPRINT_PLACES - 1))
                    digest.update(file.read(FINGERPRINT_BYTES))
        if self.adapter_weights:
            digest.update(f"weights {self.adapter_weights}\n".encode())
        return digest.hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Name and fingerprint, for a manifest."""
        return {"name": self.name, "fingerprint": self.fingerprint()}

    def fits_fingerprint(self, recorded: Mapping[str, Any]) -> bool:
        """Whether :meth:`to_json` of this checkpoint would say the same, its name aside."""
        return bool(recorded["fingerprint"] == self.fingerprint())

    def fits_hashes(self, recorded: Mapping[str, str]) -> bool:
        """Whether :meth:`hashes` were made of this checkpoint, by file names and the config's hash.

        Hashing gigabytes again would take minutes; a proof compares the weights themselves by running them.
        """
        names = {path.name for path in (self.config, *self.weights)} | {_beside(path) for path in self.adapters}
        return recorded.keys() == names and recorded[self.config.name] == file_sha256(self.config)


def _beside(path: Path) -> str:
    """An adapter's files are named alike in every folder."""
    return f"{path.absolute().parent.name}/{path.name}"
