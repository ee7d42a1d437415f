"""What a reply says as blocks, one behind the other: thoughts, texts, calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum

from glm_export.tokenizers.streams import ContentDelta, Delta, ReasoningDelta, ToolCallArguments, ToolCallStarted


class Kind(Enum):
    """Of a block."""

    THOUGHT = "thought"
    TEXT = "text"
    CALL = "call"


class Step(Enum):
    """What happens to a block."""

    OPENED = "opened"
    GREW = "grew"
    CLOSED = "closed"


@dataclass(slots=True, kw_only=True)
class Block:
    """``index``: its place in the reply. ``text``: of a call the JSON of its arguments. ``name``: of a called tool."""

    index: int
    kind: Kind
    text: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One step of one block; ``text`` is what it grew by."""

    step: Step
    block: Block
    text: str = ""


@dataclass(slots=True)
class Blocks:
    """A reply's blocks so far, of its deltas: neighbours of one kind are one block, a call is one of its own."""

    all: list[Block] = field(default_factory=list)
    _open: Block | None = None

    def feed(self, deltas: Iterable[Delta]) -> Iterator[Change]:
        """What the deltas change; what stands behind the assistant's role has no block."""
        for delta in deltas:
            match delta:
                case ToolCallStarted():
                    yield from self._begin(Kind.CALL, delta.name)
                case ToolCallArguments():
                    yield from self._grow(Kind.CALL, delta.text)
                case ReasoningDelta():
                    yield from self._grow(Kind.THOUGHT, delta.text)
                case ContentDelta():
                    yield from self._grow(Kind.TEXT, delta.text)

    def finish(self) -> Iterator[Change]:
        """The reply has ended."""
        if self._open is not None:
            yield Change(step=Step.CLOSED, block=self._open)
        self._open = None

    def thinking(self, *, begins: bool) -> bool:
        """Whether the last block is a thought; ``begins``: whether a reply that has none begins with one."""
        return self.all[-1].kind is Kind.THOUGHT if self.all else begins

    def _begin(self, kind: Kind, name: str = "") -> Iterator[Change]:
        yield from self.finish()
        self._open = Block(index=len(self.all), kind=kind, name=name)
        self.all.append(self._open)
        yield Change(step=Step.OPENED, block=self._open)

    def _grow(self, kind: Kind, text: str) -> Iterator[Change]:
        if self._open is None or self._open.kind is not kind:
            yield from self._begin(kind)
        assert self._open is not None
        self._open.text += text
        yield Change(step=Step.GREW, block=self._open, text=text)
