"""The text of one request as it is written, and where a stop string ends it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from glm_export.generation.stopping import cut_at_stop, overlap
from glm_export.tokenizers.streams import Detokenizer


class WrittenText:
    """Text of ids, piece by piece. What may become a stop string is held back; a stop string is left out.

    ``stop_string``: the one it ended at, or None.

    Pushed to in the engine's thread, read in another: ``take`` gives the piece of the next token that was pushed.
    """

    def __init__(self, detokenizer: Detokenizer, stop_strings: Sequence[str] = ()) -> None:
        self._detokenizer, self._stop_strings = detokenizer, tuple(stop_strings)
        self._held, self._pieces = "", deque[str]()
        self.stop_string: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether it ended at a stop string."""
        return self.stop_string is not None

    def push(self, token: int) -> bool:
        """One more id; returns whether the text ends there."""
        self._pieces.append(self._certain(self._detokenizer.feed([token])))
        return self.stopped

    def take(self) -> str:
        """The text that became certain with the next token."""
        return self._pieces.popleft()

    def rest(self) -> str:
        """What was held back, when nothing more is written."""
        if self.stopped:
            return ""
        text = self._certain(self._detokenizer.finish())
        if not self.stopped:
            text, self._held = text + self._held, ""
        return text

    def _certain(self, new: str) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        whole = cut_at_stop(text, self._stop_strings)
        if len(whole) < len(text):
            self.stop_string = next(stop for stop in self._stop_strings if text.startswith(stop, len(whole)))
            self._held = ""
            return whole
        size = overlap(text, self._stop_strings)
        self._held = text[len(text) - size :]
        return text[: len(text) - size]
