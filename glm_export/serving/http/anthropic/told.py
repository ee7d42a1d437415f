"""A message by Anthropic's names, whole or as events, in the order of docs.anthropic.com/en/api/messages-streaming.

``message_start``, then of each block ``content_block_start``, ``content_block_delta`` and ``content_block_stop``, then
``message_delta`` with how it ended and what it took, and ``message_stop``.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from glm_export.serving.http.conversation.blocks import Block, Change, Kind, Step
from glm_export.serving.http.conversation.telling import Telling
from glm_export.serving.http.streaming import named_event

REASONS = {"length": "max_tokens", "context": "model_context_window_exceeded"}


class AnthropicMessage:
    """One message. ``name``: what makes its id, and those of its calls, its own."""

    def __init__(self, telling: Telling, name: str) -> None:
        self._telling, self._name = telling, name

    async def whole(self) -> dict[str, Any]:
        """All of it."""
        async for _ in self._telling.changes():
            pass
        content = [self._block(block, whole=True) for block in self._telling.blocks]
        return self._message(content) | self._ending() | {"usage": self._usage()}

    async def stream(self) -> AsyncIterator[bytes]:
        """Event by event."""
        start = self._message([]) | dict.fromkeys(self._ending()) | {"usage": self._usage()}
        yield named_event({"type": "message_start", "message": start})
        async for change in self._telling.changes():
            yield named_event(self._event(change))
        yield named_event({"type": "message_delta", "delta": self._ending(), "usage": self._usage()})
        yield named_event({"type": "message_stop"})

    def _message(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"msg_{self._name}",
            "type": "message",
            "role": "assistant",
            "model": self._telling.made.model.name,
            "content": content,
        }

    def _ending(self) -> dict[str, Any]:
        """How it ended: at a string, for calls, by itself, or for want of room."""
        telling = self._telling
        reason = REASONS.get(telling.reason, "end_turn")
        if telling.reason == "stop" and any(block.kind is Kind.CALL for block in telling.blocks):
            reason = "tool_use"
        if telling.stop_string is not None:
            reason = "stop_sequence"
        return {"stop_reason": reason, "stop_sequence": telling.stop_string, "stop_details": None}

    def _usage(self) -> dict[str, int]:
        """Tokens so far; what was read before is counted apart, as Anthropic has it."""
        read, cached, written = self._telling.tokens
        return {
            "input_tokens": read - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": written,
        }

    def _event(self, change: Change) -> dict[str, Any]:
        index = change.block.index
        match change.step:
            case Step.OPENED:
                return {"type": "content_block_start", "index": index, "content_block": self._block(change.block)}
            case Step.GREW:
                return {"type": "content_block_delta", "index": index, "delta": self._delta(change)}
            case Step.CLOSED:
                return {"type": "content_block_stop", "index": index}

    def _block(self, block: Block, *, whole: bool = False) -> dict[str, Any]:
        """A block as it begins, or as it is in the end."""
        text = block.text if whole else ""
        match block.kind:
            case Kind.TEXT:
                return {"type": "text", "text": text}
            case Kind.THOUGHT:
                # Anthropic signs thoughts; nobody here would check it.
                return {"type": "thinking", "thinking": text, "signature": ""}
            case Kind.CALL:
                given = json.loads(block.text) if whole else {}
                return {"type": "tool_use", "id": self._call_id(block), "name": block.name, "input": given}

    @staticmethod
    def _delta(change: Change) -> dict[str, Any]:
        match change.block.kind:
            case Kind.TEXT:
                return {"type": "text_delta", "text": change.text}
            case Kind.THOUGHT:
                return {"type": "thinking_delta", "thinking": change.text}
            case Kind.CALL:
                return {"type": "input_json_delta", "partial_json": change.text}

    def _call_id(self, block: Block) -> str:
        return f"toolu_{self._name[:20]}{block.index:02d}"
