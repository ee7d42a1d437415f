"""A model folder's URL: what is asked of the store, what is shown of it, and what it is called in the cache."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

from glm_export.errors import InputError, shown

EXTRAS = {
    "http": ("aiohttp", "store"),
    "https": ("aiohttp", "store"),
    "s3": ("s3fs", "store"),
    "gs": ("gcsfs", "store-gs"),
    "az": ("adlfs", "store-az"),
}
"""Schemes, the package that fsspec takes for each, and the extra that brings it."""
URL = re.compile(rf"({'|'.join(EXTRAS)})://", re.IGNORECASE)
COLLAPSED = re.compile(rf"({'|'.join(EXTRAS)}):/[^/]", re.IGNORECASE)
"""What ``pathlib`` makes of a URL."""
PIN = re.compile(r"sha256=([0-9a-f]{64})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a folder lies. Make it with :func:`parse_address`.

    ``base``: what its files lie under, with whatever the URL says of credentials. ``query``: goes behind each of them.
    ``told``: the URL without either, for people. ``pin``: sha256 of the folder's list, in hexadecimal.
    """

    scheme: str
    base: str
    query: str
    told: str
    pin: str | None

    @property
    def name(self) -> str:
        """The folder's, in characters that every file system has."""
        last = urlsplit(self.told).path.rpartition("/")[2] or urlsplit(self.told).hostname or "model"
        return re.sub(r"[^\w.-]", "_", last).lstrip(".") or "model"

    @property
    def key(self) -> str:
        """What the cache calls it, the same whoever asks."""
        return hashlib.sha256(self.told.encode()).hexdigest()[:32]

    def file(self, name: str) -> str:
        """The URL of one of its files, for the store."""
        if self.scheme in ("http", "https"):
            return f"{self.base}/{quote(name)}{self.query}"
        return f"{self.base}/{name}"

    def tell(self, name: str) -> str:
        """The same, for people."""
        return f"{self.told}/{name}"


def is_url(source: str | Path) -> bool:
    """Whether a model is named by a URL that can be fetched.

    Raises:
        InputError: it is one that ``pathlib`` has cut.
    """
    if isinstance(source, Path):
        if COLLAPSED.match(str(source)) and not source.exists():
            raise InputError(f"{source} was a URL before it was made a Path; give a URL as text")
        return False
    return URL.match(source) is not None


def parse_address(url: str) -> Address:
    """Read a URL.

    Args:
        url: ``SCHEME://HOST/FOLDER[?QUERY][#sha256=HEX]``.

    Raises:
        InputError: it names no folder, or ends in something else than a hash.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InputError(f"{shown(url.rpartition('@')[2])} is no URL: {error}; give SCHEME://HOST/FOLDER") from error
    scheme, path = parts.scheme.lower(), parts.path.rstrip("/")
    pin = PIN.fullmatch(parts.fragment)
    host = parts.netloc.rpartition("@")[2]
    told = urlunsplit((scheme, host, path, "", ""))
    if not host:
        raise InputError(f"{shown(told)} names no host or bucket; give {scheme}://…/FOLDER")
    if parts.fragment and pin is None:
        raise InputError(
            f"{told} ends in #{shown(parts.fragment)}, expected #sha256= and 64 hexadecimal digits; "
            "'glm-export fetch' prints it"
        )
    return Address(
        scheme=scheme,
        base=urlunsplit((scheme, parts.netloc, path, "", "")),
        query=f"?{parts.query}" if parts.query else "",
        told=told,
        pin=pin[1] if pin else None,
    )
