"""When a text ends, and how one is streamed without showing what may yet be cut off."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from glm_export.errors import InputError, shown
from glm_export.tokenizers.streams import Detokenizer

Decode = Callable[[list[int]], str]


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
    """Text of ids as they are written: what may become a stop string is held back, and a stop string left out.

    ``stop_string``: the one it ended at, or None.

    Args:
        detokenizer: of a text that has not begun; holds back characters that are incomplete.
        stop_strings: at the first of them in the text, it ends.
    """

    def __init__(self, detokenizer: Detokenizer, stop_strings: Sequence[str] = ()) -> None:
        self._detokenizer, self._stop_strings = detokenizer, tuple(stop_strings)
        self._held = ""
        self.stop_string: str | None = None

    def feed(self, ids: Iterable[int]) -> str:
        """The text that becomes certain with more ids."""
        return self._certain(self._detokenizer.feed(ids))

    def finish(self) -> str:
        """What was held back, when no more come."""
        text = self._certain("" if self.stop_string is not None else self._detokenizer.finish())
        held, self._held = self._held, ""
        return text + held

    def _certain(self, new: str) -> str:
        if self.stop_string is not None:
            return ""
        text, self._held = self._held + new, ""
        whole = cut_at_stop(text, self._stop_strings)
        if len(whole) < len(text):
            self.stop_string = next(stop for stop in self._stop_strings if text.startswith(stop, len(whole)))
            return whole
        certain = len(text) - overlap(text, self._stop_strings)
        self._held = text[certain:]
        return text[:certain]


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
