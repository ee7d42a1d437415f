"""When a text ends, and how one is streamed without showing what may yet be cut off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from glm_export.errors import InputError

Decode = Callable[[list[int]], str]
REPLACEMENT = "\ufffd"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopping:
    """When a row is finished: length, ids (not part of the result), or strings in the decoded text (cut off)."""

    max_new_tokens: int = 128
    stop_ids: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens must be at least 1, found {self.max_new_tokens}")
        if "" in self.stop_strings:
            raise InputError("a stop string needs at least one character, found an empty one; leave it out")


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
            whole = whole[: len(whole) - _overlap(whole, self._stop_strings)]
        new = whole[self._sent :]
        self._sent = max(self._sent, len(whole))
        return new


def cut_at_stop(text: str, stop_strings: Sequence[str]) -> str:
    """The text before the first stop string."""
    positions = [position for stop in stop_strings if (position := text.find(stop)) >= 0]
    return text[: min(positions)] if positions else text


def _overlap(text: str, stop_strings: Sequence[str]) -> int:
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
