"""What strings' methods do, to text that comes in parts: the parts that come out are together what the whole gives.

Each holds back what the next part may change, and no more; work grows with the text, however it is cut.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol


class TextFilter(Protocol):
    """Text in, text out."""

    def feed(self, text: str) -> str:
        """What is certain now."""

    def finish(self) -> str:
        """What was held back."""


class StripFilter:
    """``str.strip``."""

    def __init__(self) -> None:
        self._begun = False
        self._blanks: list[str] = []

    def feed(self, text: str) -> str:
        """All up to the last blanks."""
        if not self._begun:
            text = text.lstrip()
        kept = text.rstrip()
        if not kept:
            self._blanks.append(text)
            return ""
        self._begun = True
        certain = "".join([*self._blanks, kept])
        self._blanks = [text[len(kept) :]]
        return certain

    def drop_blanks(self) -> None:
        """Strip the end of what came so far."""
        self._blanks = []

    def finish(self) -> str:
        """Nothing: the last blanks are stripped."""
        self._blanks = []
        return ""


class ReplaceFilter:
    """``str.replace``."""

    def __init__(self, old: str, new: str) -> None:
        self._old, self._new = old, new
        self._held = ""

    def feed(self, text: str) -> str:
        """All up to what may become the old text."""
        *parts, last = (self._held + text).split(self._old)
        size = next((n for n in range(min(len(self._old) - 1, len(last)), 0, -1) if last.endswith(self._old[:n])), 0)
        self._held = last[len(last) - size :]
        return self._new.join([*parts, last[: len(last) - size]])

    def finish(self) -> str:
        """What did not become it."""
        held, self._held = self._held, ""
        return held


class TagSplitter:
    """Cuts text at tags: strings that begin with ``<`` and have no other."""

    def __init__(self, tags: Iterable[str]) -> None:
        tags = tuple(tags)
        self._pattern = re.compile("(" + "|".join(map(re.escape, tags)) + ")")
        self._beginnings = frozenset(tag[:size] for tag in tags for size in range(1, len(tag)))
        self._longest = max(map(len, tags)) - 1
        self._held = ""

    def feed(self, text: str) -> list[tuple[str, bool]]:
        """Text and tags, and whether each is one."""
        parts = self._pattern.split(self._held + text)
        tail = parts[-1][-self._longest :]
        at = tail.rfind("<")
        self._held = tail[at:] if at >= 0 and tail[at:] in self._beginnings else ""
        parts[-1] = parts[-1].removesuffix(self._held)
        return [(part, place % 2 == 1) for place, part in enumerate(parts) if part]

    def finish(self) -> str:
        """What did not become a tag."""
        held, self._held = self._held, ""
        return held


class TagFilter:
    """Tags replaced by what they stand for."""

    def __init__(self, meanings: Mapping[str, str]) -> None:
        self._meanings, self._splitter = meanings, TagSplitter(meanings)

    def feed(self, text: str) -> str:
        """All up to what may become a tag."""
        return "".join(self._meanings[part] if tag else part for part, tag in self._splitter.feed(text))

    def finish(self) -> str:
        """What did not become one."""
        return self._splitter.finish()


class FilterChain:
    """One filter behind the other."""

    def __init__(self, filters: Sequence[TextFilter]) -> None:
        self._filters = tuple(filters)

    def feed(self, text: str) -> str:
        """What the last one is certain of."""
        for each in self._filters:
            text = each.feed(text)
        return text

    def finish(self) -> str:
        """What each held back, through those behind it."""
        text = ""
        for each in self._filters:
            text = each.feed(text) + each.finish()
        return text
