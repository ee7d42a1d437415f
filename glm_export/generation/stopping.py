"""When a text ends, and how one is streamed without showing what may yet be cut off."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from glm_export.errors import InputError, shown

Decode = Callable[[list[int]], str]
REPLACEMENT = "\ufffd"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopping:
    """When a row is finished: length, ids (not part of the result), or strings in the decoded text (cut off)."""

    max_new_tokens: int = 128
    stop_ids: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # Whoever calls may give anything.
        most: Any = self.max_new_tokens
        stops: Any = self.stop_strings
        if not isinstance(most, Integral) or most < 1:
            raise InputError(f"max_new_tokens must be a whole number and at least 1, found {shown(most)}")
        if not isinstance(stops, tuple) or not all(isinstance(stop, str) for stop in stops):
            raise InputError(f"stop strings must be texts, several in a tuple, found {shown(stops)}")
        if "" in self.stop_strings:
            raise InputError("a stop string needs at least one character, found an empty one; leave it out")


def stops_of(given: Any) -> tuple[str, ...]:
    """Stop strings out of whatever holds them; one text is one of them, not a sequence of its characters."""
    return tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else (given,)


class TextStream:
    """Text as it grows: characters still incomplete, and what may become a stop string, are held back."""

    def __init__(self, decode: Decode, stop_strings: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop_strings = tuple(stop_strings)
        self._sent = 0

    def text(self, ids: list[int], *, finished: bool) -> str:
        """The part of the text that is new since the last call."""
        whole = cut_at_stop(self._decode(ids), self._stop_strings)
        if not finished:
            whole = whole.rstrip(REPLACEMENT)
            whole = whole[: len(whole) - overlap(whole, self._stop_strings)]
        new = whole[self._sent :]
        self._sent = max(self._sent, len(whole))
        return new


def cut_at_stop(text: str, stop_strings: Sequence[str]) -> str:
    """The text before the first stop string."""
    positions = [position for stop in stop_strings if (position := text.find(stop)) >= 0]
    return text[: min(positions)] if positions else text


def overlap(text: str, stop_strings: Sequence[str]) -> int:
    """Length of the longest end of the text that begins a stop string."""
    return max(
        (
            size
            for stop in stop_strings
            for size in range(1, min(len(stop), len(text) + 1))
            if text.endswith(stop[:size])
        ),
        default=0,
    )
