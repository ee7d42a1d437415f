"""Golden models behind an engine."""

from __future__ import annotations

from tests.sessions.conftest import exported

__all__ = ["exported"]
