"""How long steps tell how far they are; who shows it is up to the caller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Advance = Callable[[int], None]


class Progress(Protocol):
    """Something that shows tasks side by side."""

    def task(self, name: str, total: int) -> Advance:
        """Start a task of ``total`` units (bytes or steps); the returned call adds to it."""


class NullProgress:
    """Shows nothing."""

    def task(self, name: str, total: int) -> Advance:  # noqa: ARG002 - the protocol's arguments
        """Start a task nobody sees."""
        return lambda _: None
