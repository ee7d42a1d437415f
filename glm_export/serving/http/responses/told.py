"""A response by OpenAI's names, whole or as events, in the order of OpenAI's reference (responses-streaming).

``response.created`` and ``response.in_progress``; of each item ``response.output_item.added``, what it grows by and
``response.output_item.done``; ``response.completed``, or ``response.incomplete`` where there was no more room.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from glm_export.serving.http.conversation.blocks import Block, Change, Kind, Step
from glm_export.serving.http.conversation.telling import Telling
from glm_export.serving.http.failures import of_exception
from glm_export.serving.http.responses.asked import ResponsesRequest
from glm_export.serving.http.streaming import named_event

Event = dict[str, Any]
PARTS = {Kind.TEXT: "output_text", Kind.THOUGHT: "reasoning_text"}


class OpenAIResponse:
    """One response. ``name``: what makes its id, and those of its items, its own."""

    def __init__(self, telling: Telling, asked: ResponsesRequest, name: str) -> None:
        self._telling, self._asked, self._name = telling, asked, name
        self._created, self._number = int(time.time()), 0

    async def whole(self) -> dict[str, Any]:
        """All of it."""
        async for _ in self._telling.changes():
            pass
        return self._response()

    async def stream(self) -> AsyncIterator[bytes]:
        """Event by event."""
        for kind in ("created", "in_progress"):
            yield self._event({"type": f"response.{kind}", "response": self._response()})
        async for change in self._telling.changes():
            for event in self._events(change):
                yield self._event(event)
        told = self._response()
        yield self._event({"type": f"response.{told['status']}", "response": told})

    def failed(self, error: Exception) -> bytes:
        """The last event of a response that cannot go on."""
        told = of_exception(error)[1]["error"]
        wrong = {"code": told["code"] or told["type"], "message": told["message"]}
        return self._event(
            {"type": "response.failed", "response": self._response() | {"status": "failed", "error": wrong}}
        )

    def _event(self, values: Event) -> bytes:
        self._number += 1
        return named_event(values | {"sequence_number": self._number - 1})

    @property
    def _status(self) -> str:
        reason = self._telling.reason
        return {"": "in_progress", "stop": "completed"}.get(reason, "incomplete")

    def _response(self) -> dict[str, Any]:
        asked, status = self._asked, self._status
        return {
            "id": f"resp_{self._name}",
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata or {},
            "model": self._telling.made.model.name,
            "output": [] if status == "in_progress" else [self._item(block, status) for block in self._telling.blocks],
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": (asked.reasoning or {}).get("effort"), "summary": None},
            "store": False,
            "temperature": 1.0 if asked.temperature is None else asked.temperature,
            "text": asked.text or {"format": {"type": "text"}},
            "tool_choice": asked.tool_choice or "auto",
            "tools": asked.tools or [],
            "top_p": 1.0 if asked.top_p is None else asked.top_p,
            "truncation": "disabled",
            "usage": None if status == "in_progress" else self._usage(),
        }

    def _usage(self) -> dict[str, Any]:
        read, cached, written = self._telling.tokens
        return {
            "input_tokens": read,
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
            "output_tokens": written,
            "output_tokens_details": {"reasoning_tokens": self._telling.thought_tokens},
            "total_tokens": read + written,
        }

    def _item(self, block: Block, status: str) -> dict[str, Any]:
        """An item as it is; what was still written when there was no more room is the last."""
        last = block is self._telling.blocks[-1]
        about = {"id": self._item_id(block), "status": status if last else "completed"}
        match block.kind:
            case Kind.TEXT:
                return about | {"type": "message", "role": "assistant", "content": [self._part(block)]}
            case Kind.THOUGHT:
                return about | {"type": "reasoning", "summary": [], "content": [self._part(block)]}
            case Kind.CALL:
                call = {"call_id": f"call_{self._name[:20]}{block.index:02d}", "name": block.name}
                return about | {"type": "function_call", "arguments": block.text} | call

    @staticmethod
    def _part(block: Block, *, empty: bool = False) -> dict[str, Any]:
        part: dict[str, Any] = {"type": PARTS[block.kind], "text": "" if empty else block.text}
        return part | ({"annotations": [], "logprobs": []} if block.kind is Kind.TEXT else {})

    def _item_id(self, block: Block) -> str:
        prefix = {Kind.TEXT: "msg", Kind.THOUGHT: "rs", Kind.CALL: "fc"}[block.kind]
        return f"{prefix}_{self._name[:20]}{block.index:02d}"

    def _events(self, change: Change) -> Iterator[Event]:
        block = change.block
        place: Event = {"item_id": self._item_id(block), "output_index": block.index}
        part: Event = place | {"content_index": 0}
        kind = "function_call_arguments" if block.kind is Kind.CALL else PARTS[block.kind]
        logprobs: Event = {"logprobs": []} if block.kind is Kind.TEXT else {}
        match change.step:
            case Step.OPENED:
                item = self._item(block, "in_progress")
                item |= {"content": []} if "content" in item else {}
                yield {"type": "response.output_item.added", "output_index": block.index, "item": item}
                if block.kind is not Kind.CALL:
                    added = self._part(block, empty=True)
                    yield {"type": "response.content_part.added", "part": added} | part
            case Step.GREW:
                where = place if block.kind is Kind.CALL else part | logprobs
                yield {"type": f"response.{kind}.delta", "delta": change.text} | where
            case Step.CLOSED if block.kind is Kind.CALL:
                yield {"type": f"response.{kind}.done", "arguments": block.text, "name": block.name} | place
                yield self._done(block)
            case Step.CLOSED:
                yield {"type": f"response.{kind}.done", "text": block.text} | part | logprobs
                yield {"type": "response.content_part.done", "part": self._part(block)} | part
                yield self._done(block)

    def _done(self, block: Block) -> Event:
        status = self._status if block is self._telling.blocks[-1] and self._telling.reason else "completed"
        return {
            "type": "response.output_item.done",
            "output_index": block.index,
            "item": self._item(block, status),
        }
