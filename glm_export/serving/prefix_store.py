"""What rows read before, kept for rows that begin alike: of the same tenant only, within a bound, the oldest given up.

A conversation's next turn begins with all that was said; a system message begins every conversation. Whose tokens were
read is part of the key, so no answer, and no time it takes, tells one tenant what another asked.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from glm_export.sessions.kv_cache import RowValues

LEAST_TOKENS = 16
"""Fewer are read faster than they are found and copied."""


@dataclass(frozen=True, slots=True)
class Found:
    """A beginning that was read before: its values, and how many tokens of the prompt they are of."""

    values: RowValues[Any]
    tokens: int


class PrefixStore:
    """Values of rows, by tenant and tokens; ``bytes`` at most ``max_bytes``.

    ``hits`` and ``lookups`` count tokens: those found of those looked for.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.bytes = max_bytes, 0
        self.hits = self.lookups = 0
        self._kept: OrderedDict[tuple[str, tuple[int, ...]], RowValues[Any]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, tenant: str, tokens: Sequence[int], values: RowValues[Any]) -> None:
        """Keep a row's values, its tokens without an initial cache's columns; beginnings of it that were kept go."""
        key, size = (tenant, tuple(tokens)), size_of(values)
        if len(tokens) < LEAST_TOKENS or size > self.max_bytes:
            return
        for other in [known for known in self._kept if _begins(key, known)]:
            self._forget(other)
        self._kept[key] = values
        self.bytes += size
        while self.bytes > self.max_bytes:
            self._forget(next(iter(self._kept)))

    def find(self, tenant: str, tokens: Sequence[int]) -> Found | None:
        """The longest beginning of a prompt that this tenant's rows have read; never all of it.

        The last token is read again: its logits are wanted.
        """
        self.lookups += len(tokens)
        best, length = None, LEAST_TOKENS - 1
        for key in self._kept:
            common = _common(key[1], tokens[:-1]) if key[0] == tenant else 0
            if common > length:
                best, length = key, common
        if best is None:
            return None
        self._kept.move_to_end(best)
        self.hits += length
        values = self._kept[best]
        return Found(values.first(values.prefix + length), length)

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self.bytes = 0

    def _forget(self, key: tuple[str, tuple[int, ...]]) -> None:
        self.bytes -= size_of(self._kept.pop(key))


def size_of(values: RowValues[Any]) -> int:
    """Bytes of a row's keys and values."""
    return sum(int(array.nbytes) for array in values.arrays)


def _begins(key: tuple[str, tuple[int, ...]], other: tuple[str, tuple[int, ...]]) -> bool:
    return other[0] == key[0] and len(other[1]) <= len(key[1]) and key[1][: len(other[1])] == other[1]


def _common(kept: Sequence[int], wanted: Sequence[int]) -> int:
    """How many tokens are alike from the first on."""
    for index, (one, other) in enumerate(zip(kept, wanted, strict=False)):
        if one != other:
            return index
    return min(len(kept), len(wanted))
