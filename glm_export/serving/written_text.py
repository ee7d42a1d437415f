"""The text of one request as it is written, told in another thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from glm_export.generation.stopping import TextStream
from glm_export.tokenizers.streams import Detokenizer


class WrittenText(TextStream):
    """A stream that is pushed to in the engine's thread; ``take`` gives the piece of the next token that was pushed."""

    def __init__(self, detokenizer: Detokenizer, stop_strings: Sequence[str] = ()) -> None:
        super().__init__(detokenizer, stop_strings)
        self._pieces = deque[str]()

    def push(self, token: int) -> bool:
        """One more id; returns whether the text ends there."""
        self._pieces.append(self.feed([token]))
        return self.stop_string is not None

    def take(self) -> str:
        """The text that became certain with the next token."""
        return self._pieces.popleft()
