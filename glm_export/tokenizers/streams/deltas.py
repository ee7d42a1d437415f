"""What is new in a reply."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from glm_export.tokenizers.chat.messages import Message
from glm_export.tokenizers.chat.replies import Call, tool_call


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentDelta:
    """More of the answer's text."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningDelta:
    """More of what was thought."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallStarted:
    """A call begins; ``index`` counts from 0."""

    index: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallArguments:
    """More of the JSON of a call's arguments."""

    index: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MetadataDelta:
    """What stands behind the assistant's role, as ``interpreter``; of several the last counts."""

    text: str


Delta = ContentDelta | ReasoningDelta | ToolCallStarted | ToolCallArguments | MetadataDelta


def deltas_of_call(index: int, call: Call) -> Iterator[Delta]:
    """A whole call."""
    name, arguments = call
    yield ToolCallStarted(index=index, name=name)
    yield ToolCallArguments(index=index, text=json.dumps(arguments, ensure_ascii=False))


def joined(deltas: Iterable[Delta]) -> list[Delta]:
    """The same with neighbouring texts as one; empty ones are left out."""
    found: list[Delta] = []
    for delta in deltas:
        last = found[-1] if found else None
        if isinstance(delta, ContentDelta | ReasoningDelta):
            if not delta.text:
                continue
            if isinstance(last, ContentDelta | ReasoningDelta) and type(last) is type(delta):
                found[-1] = replace(last, text=last.text + delta.text)
                continue
        found.append(delta)
    return found


def message_of(deltas: Iterable[Delta]) -> Message:
    """What a reply's deltas say together: the message that ``parse_reply`` makes of the whole."""
    contents, thoughts, metadata = [], [], ""
    names: list[str] = []
    arguments: list[list[str]] = []
    for delta in deltas:
        match delta:
            case ContentDelta():
                contents.append(delta.text)
            case ReasoningDelta():
                thoughts.append(delta.text)
            case MetadataDelta():
                metadata = delta.text
            case ToolCallStarted():
                names.append(delta.name)
                arguments.append([])
            case ToolCallArguments():
                arguments[delta.index].append(delta.text)
    message = Message(role="assistant", content="".join(contents) or (None if names else ""))
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    if names:
        message["tool_calls"] = [
            tool_call(name, json.loads("".join(parts))) for name, parts in zip(names, arguments, strict=True)
        ]
    if metadata:
        message["metadata"] = metadata
    return message
