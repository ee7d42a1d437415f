"""Replies whose turns stand behind roles, read while they are written: ChatGLM3, GLM-4, GLM-4-0414."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar, Protocol

from glm_export.tokenizers.chat.replies import (
    ASSISTANT,
    TRAINED,
    TRAINED_TEXT,
    Functions,
    Turn,
    role_lines_turn,
    role_parts_turn,
)
from glm_export.tokenizers.streams.deltas import ContentDelta, Delta, MetadataDelta, deltas_of_call
from glm_export.tokenizers.streams.filters import FilterChain, ReplaceFilter, StripFilter
from glm_export.tokenizers.streams.prefixes import FencedCallPrefix, JsonObjectPrefix, NamePrefix
from glm_export.tokenizers.streams.reader import ReplyReader


class ArgumentsPrefix(Protocol):
    """The lines below a tool's name."""

    def feed(self, text: str) -> bool:
        """Whether they may be arguments yet."""


class TurnKind(ABC):
    """How turns are written; ``functions``: the known tools; ``replaced``: texts that stand for others."""

    replaced: tuple[tuple[str, str], ...] = ()

    def __init__(self, functions: Functions) -> None:
        self.functions = functions

    @abstractmethod
    def read(self, name: str, rest: str) -> Turn:
        """A whole turn."""

    @abstractmethod
    def may_be_name(self, begun: str, *, ended: bool) -> bool:
        """Whether a turn that begins so may be more than text."""

    @abstractmethod
    def arguments(self, name: str) -> ArgumentsPrefix:
        """What watches the lines below a name."""

    @abstractmethod
    def is_metadata(self, watched: ArgumentsPrefix) -> bool:
        """Whether the name stands apart from lines that are no arguments."""


class RoleLines(TurnKind):
    """GLM-4 and GLM-4-0414."""

    def read(self, name: str, rest: str) -> Turn:
        """By what reads whole replies."""
        return role_lines_turn(name, rest, self.functions)

    def may_be_name(self, begun: str, *, ended: bool) -> bool:
        """Of a known tool, where there are some."""
        if self.functions is None:
            return True
        return begun in self.functions if ended else any(name.startswith(begun) for name in self.functions)

    def arguments(self, name: str) -> ArgumentsPrefix:  # noqa: ARG002 - all take an object
        """An object in JSON."""
        return JsonObjectPrefix()

    def is_metadata(self, watched: ArgumentsPrefix) -> bool:  # noqa: ARG002 - whatever it is
        """Where the tool is known to be one."""
        return self.functions is not None


class RoleParts(TurnKind):
    """ChatGLM3."""

    replaced = ((TRAINED, TRAINED_TEXT),)

    def read(self, name: str, rest: str) -> Turn:
        """By what reads whole replies."""
        return role_parts_turn(name, rest, self.functions)

    def may_be_name(self, begun: str, *, ended: bool) -> bool:  # noqa: ARG002 - what is no tool is metadata
        """Of anything."""
        return True

    def arguments(self, name: str) -> ArgumentsPrefix:
        """A call in Python, of a tool that there is."""
        return FencedCallPrefix(is_tool=self.functions is None or name in self.functions)

    def is_metadata(self, watched: ArgumentsPrefix) -> bool:
        """Where there is code."""
        return isinstance(watched, FencedCallPrefix) and watched.fenced


class _TurnStream:
    """One turn: its first line, then what may be arguments, are held until they are no call."""

    def __init__(self, kind: TurnKind) -> None:
        self._kind = kind
        self._held: list[str] = []
        self._name: NamePrefix | None = NamePrefix()
        self._arguments: ArgumentsPrefix | None = None
        self._text = StripFilter()
        self._first_line = True

    def feed(self, text: str) -> Iterator[Turn]:
        if self._name is not None:
            first, newline, text = text.partition("\n")
            self._held.append(first + newline)
            if not self._may_be_named(self._name, first, ended=bool(newline)):
                self._name = None
                yield self._released()
            elif newline:
                self._arguments = self._kind.arguments(self._name.name)
                self._name = None
        if not text:
            return
        if self._arguments is None:
            yield Turn(text=self._said(text))
            return
        self._held.append(text)
        if not self._arguments.feed(text):
            is_metadata = self._kind.is_metadata(self._arguments)
            self._arguments = None
            yield self._released(with_metadata=is_metadata)

    def finish(self) -> Turn:
        if self._arguments is None:
            return self._released()
        first, _, rest = "".join(self._held).partition("\n")
        return self._kind.read(first.strip(), rest)

    def _may_be_named(self, prefix: NamePrefix, text: str, *, ended: bool) -> bool:
        if not prefix.feed(text) or (ended and not prefix.name):
            return False
        return self._kind.may_be_name(prefix.name, ended=ended)

    def _released(self, *, with_metadata: bool = False) -> Turn:
        held, self._held = "".join(self._held), []
        if not with_metadata:
            return Turn(text=self._said(held))
        first, _, rest = held.partition("\n")
        self._first_line = False
        return Turn(text=self._said(rest), metadata=first.strip())

    def _said(self, text: str) -> str:
        """Text without blanks around it, and at the first line's end."""
        before, newline, after = text.partition("\n") if self._first_line else (text, "", "")
        said = self._text.feed(before)
        if newline:
            self._first_line = False
            self._text.drop_blanks()
            said += self._text.feed(newline + after)
        return said


class TurnReader(ReplyReader):
    """A reply's turns."""

    tags: ClassVar[tuple[str, ...]] = (ASSISTANT,)

    def __init__(self, kind: TurnKind) -> None:
        self._kind = kind
        self._turn = _TurnStream(kind)
        self._written = FilterChain([ReplaceFilter(old, new) for old, new in kind.replaced])
        self._calls = 0
        self._said = self._said_in_turn = False

    def feed(self, part: str, *, is_tag: bool) -> Iterator[Delta]:
        """Deltas of text, or of a tag that counts."""
        if is_tag and part == ASSISTANT:
            yield from self._deltas(self._turn.finish())
            self._turn = _TurnStream(self._kind)
            self._said_in_turn = False
            return
        for turn in self._turn.feed(part):
            yield from self._deltas(turn)

    def finish(self) -> Iterator[Delta]:
        """The last turn."""
        yield from self._deltas(self._turn.finish())
        yield ContentDelta(text=self._written.finish())

    def _deltas(self, turn: Turn) -> Iterator[Delta]:
        if turn.metadata:
            yield MetadataDelta(text=turn.metadata)
        if turn.call:
            yield from deltas_of_call(self._calls, turn.call)
            self._calls += 1
        if turn.text:
            between = "\n" if self._said and not self._said_in_turn else ""
            self._said = self._said_in_turn = True
            yield ContentDelta(text=self._written.feed(between + turn.text))
