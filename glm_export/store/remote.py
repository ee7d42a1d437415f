"""What every store can be asked, and how long one that fails is asked again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol, TypeVar

from glm_export.errors import CheckpointError, EnvironmentMissingError, GlmExportError, InputError
from glm_export.store.address import EXTRAS, Address

logger = logging.getLogger(__name__)
BLOCK_BYTES = 1 << 20
"""Read at a time."""
TRIES, FIRST_WAIT_SECONDS = 5, 0.1
"""Of what fails, without a byte in between; each wait is twice the last."""
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """A file as a store tells it.

    ``version``: what the store calls these bytes, another for others; None where it does not say. ``sha256``: in
    hexadecimal, where it is known before anything is read. ``size``: bytes.
    """

    name: str
    size: int | None = None
    sha256: str | None = None
    version: str | None = None

    @property
    def tag(self) -> str | None:
        """What tells the bytes that are wanted from others; None where nothing does."""
        return f"sha256:{self.sha256}" if self.sha256 else self.version

    @property
    def strong(self) -> bool:
        """Whether a part of these bytes may be put behind another."""
        return self.sha256 is not None or (self.version is not None and not self.version.startswith("W/"))


class Store(Protocol):
    """Files under one address."""

    address: Address

    def listed(self) -> Mapping[str, Remote] | None:
        """Every file that lies there, none of folders below; None where a store cannot list."""

    def ask(self, name: str) -> Remote | None:
        """A file; None where there is none of that name."""

    def stream(self, remote: Remote, offset: int) -> tuple[int, Iterator[bytes]]:
        """Bytes of a file, and where they begin: at ``offset``, or at 0 where they cannot be had from there.

        Raises:
            ChangedError: they are no longer those that ``remote`` tells.
            OSError: they cannot be read now.
        """


class ChangedError(CheckpointError):
    """What lies at the address is not what lay there a moment ago."""


def open_store(address: Address) -> Store:
    """The store of an address.

    Raises:
        EnvironmentMissingError: a package is missing.
    """
    package, extra = EXTRAS[address.scheme]
    try:
        for name in ("fsspec", "filelock", package):
            import_module(name)
    except ImportError as error:
        raise EnvironmentMissingError(
            f"{address.scheme}:// needs the package {error.name}, which is not installed; "
            f"pip install 'glm-export[{extra}]'"
        ) from error
    if address.scheme in ("http", "https"):
        from glm_export.store.http import HttpStore

        return HttpStore(address)
    from glm_export.store.objects import ObjectStore

    return ObjectStore(address)


def patiently(what: str, call: Callable[[], Answer], *, tries: int = TRIES) -> Answer:
    """Ask again where an answer may come yet.

    Args:
        what: is asked for, for people.
        call: asks.
        tries: how often; 1 for a library that asks again by itself.

    Raises:
        InputError: there is no such thing.
        EnvironmentMissingError: no answer came, or a refusal.
    """
    for tried in range(tries):
        try:
            return call()
        except GlmExportError:
            raise
        except FileNotFoundError as error:
            raise InputError(f"{what} is not there; see that the URL names a folder that was uploaded") from error
        except PermissionError as error:
            raise refused(what, error) from error
        except OSError as error:
            if tried == tries - 1:
                raise unreachable(what, error) from error
            logger.info("%s: %s; asked again", what, error)
            time.sleep(FIRST_WAIT_SECONDS * 2**tried)
        except Exception as error:
            # Libraries of stores have errors of their own, of credentials and configuration above all.
            raise refused(what, error) from error
    raise AssertionError("the last try returns or raises")


def unreachable(what: str, error: BaseException) -> EnvironmentMissingError:
    """After the last try."""
    return EnvironmentMissingError(
        f"{what} cannot be read: {error or type(error).__name__}; what arrived is kept: run it again"
    )


def refused(what: str, error: BaseException) -> EnvironmentMissingError:
    """Where trying again changes nothing."""
    return EnvironmentMissingError(
        f"{what} cannot be read: {type(error).__name__}: {error}; see that its name and the credentials of this "
        "machine are right"
    )
