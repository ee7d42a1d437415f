"""What reads a reply's text and tags, one kind for each way that calls are written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

from glm_export.tokenizers.streams.deltas import ContentDelta, Delta
from glm_export.tokenizers.streams.filters import StripFilter


class ReplyReader(ABC):
    """A reply behind its thought; ``tags``: those that may mean something."""

    tags: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def feed(self, part: str, *, is_tag: bool) -> Iterator[Delta]:
        """Deltas of text or a tag."""

    @abstractmethod
    def finish(self) -> Iterator[Delta]:
        """Deltas of what was held back."""

    def think(self, part: str, *, is_tag: bool) -> Iterator[str | Delta]:  # noqa: ARG002 - no tag means anything there
        """What a thought's text or tag is: text of it, or deltas of a call that ends it."""
        yield part

    def end_thought(self) -> str:
        """What was held back of a thought, as text."""
        return ""


class PlainReader(ReplyReader):
    """Text alone."""

    def __init__(self) -> None:
        self._text = StripFilter()

    def feed(self, part: str, *, is_tag: bool) -> Iterator[Delta]:  # noqa: ARG002 - it knows none
        """The text."""
        yield ContentDelta(text=self._text.feed(part))

    def finish(self) -> Iterator[Delta]:
        """Nothing: blanks at the end are stripped."""
        yield from ()
