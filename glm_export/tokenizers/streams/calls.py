"""Replies with calls in tags, read while they are written: GLM-4.5."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from glm_export.tokenizers.chat.replies import CALL, CALL_END, KEY, Call, Functions, xml_call
from glm_export.tokenizers.streams.deltas import ContentDelta, Delta, deltas_of_call
from glm_export.tokenizers.streams.filters import StripFilter
from glm_export.tokenizers.streams.prefixes import NamePrefix
from glm_export.tokenizers.streams.reader import ReplyReader


class CallScanner:
    """Text and whole calls; what begins like a call is held until it is one, or cannot be."""

    def __init__(self, functions: Functions) -> None:
        self._functions = functions
        self._held: list[str] = []
        self._prefix = NamePrefix()
        self._named = False

    def feed(self, part: str, *, is_tag: bool) -> Iterator[str | Call]:
        """What is certain now: text, or a call."""
        if not self._held:
            if is_tag and part == CALL:
                self._held, self._prefix, self._named = [part], NamePrefix(), False
            else:
                yield part
        elif is_tag and part == CALL_END and self._prefix.name:
            name, body = self._prefix.name, "".join(self._held[1:])
            self._held = []
            yield xml_call(name, body, self._functions)
        elif self._named or self._may_be_call(part, is_tag=is_tag):
            self._held.append(part)
        else:
            yield self.release()
            yield from self.feed(part, is_tag=is_tag)

    def release(self) -> str:
        """What was held, as text."""
        held, self._held = "".join(self._held), []
        return held

    def _may_be_call(self, part: str, *, is_tag: bool) -> bool:
        if is_tag:
            self._named = part == KEY and bool(self._prefix.name)
            return self._named
        line, newline, _ = (part if self._prefix.name else part.lstrip()).partition("\n")
        possible = self._prefix.feed(line)
        self._named = possible and bool(newline)
        return possible


class CallReader(ReplyReader):
    """A reply whose calls may end its thought; what follows the first is no answer."""

    tags: ClassVar[tuple[str, ...]] = (CALL, CALL_END, KEY)

    def __init__(self, functions: Functions) -> None:
        self._scanner, self._text = CallScanner(functions), StripFilter()
        self._calls = 0

    def feed(self, part: str, *, is_tag: bool) -> Iterator[Delta]:
        """Deltas of text or a tag."""
        for found in self._scanner.feed(part, is_tag=is_tag):
            yield from self._deltas(found)

    def think(self, part: str, *, is_tag: bool) -> Iterator[str | Delta]:
        """Text of a thought, or the call that ends it."""
        for found in self._scanner.feed(part, is_tag=is_tag):
            if isinstance(found, str):
                yield found
            else:
                yield from self._deltas(found)

    def end_thought(self) -> str:
        """Half a call is thought."""
        return self._scanner.release()

    def finish(self) -> Iterator[Delta]:
        """Half a call is text."""
        yield from self._deltas(self._scanner.release())

    def _deltas(self, found: str | Call) -> Iterator[Delta]:
        if not isinstance(found, str):
            yield from deltas_of_call(self._calls, found)
            self._calls += 1
        elif not self._calls:
            yield ContentDelta(text=self._text.feed(found))
