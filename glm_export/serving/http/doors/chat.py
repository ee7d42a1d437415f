"""``POST /v1/chat/completions``: a conversation's next message, whole or as it is written."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request as HttpRequest
from fastapi.responses import Response

from glm_export.serving.http.asking import token_object
from glm_export.serving.http.connection import while_connected
from glm_export.serving.http.conversation.prepared import Reply, prepared
from glm_export.serving.http.schemas import ChatRequest
from glm_export.serving.http.served import ServedModel
from glm_export.serving.http.streaming import event, streamed
from glm_export.serving.http.writing import Choice, Writing
from glm_export.serving.request import Event
from glm_export.tokenizers.streams import (
    ContentDelta,
    Delta,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallStarted,
    message_of,
)

router = APIRouter()


@router.post("/v1/chat/completions")
async def chat(http: HttpRequest, asked: ChatRequest) -> Response:
    """The assistant's next message."""
    made = await prepared(http, asked)
    answer, writing = _Answer(http, asked, made.model, made.replies), made.writing
    if asked.stream:
        return streamed(writing, answer.stream(writing))
    with writing:
        return await while_connected(http, answer.whole(writing))


class _Answer:
    """What is told of a chat's choices, whole or piece by piece."""

    def __init__(self, http: HttpRequest, asked: ChatRequest, model: ServedModel, replies: Sequence[Reply]) -> None:
        self._asked, self._model, self._replies = asked, model, replies
        self._id, self._created = f"chatcmpl-{http.state.request_id.removeprefix('req-')}", int(time.time())

    def _body(self, kind: str, told: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model.name, "choices": told}

    async def whole(self, writing: Writing) -> dict[str, Any]:
        """All of it."""
        async for choice, event_ in writing.events():
            self._tell(choice, event_)
            self._replies[choice.index].take(choice)
        told = []
        for choice, reply in zip(writing.choices, self._replies, strict=True):
            message: dict[str, Any] = dict(message_of(reply.deltas))
            for number, call in enumerate(message.get("tool_calls", ())):
                call["id"] = self._call_id(choice.index, number)
                call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
            told.append(
                {
                    "index": choice.index,
                    "message": message,
                    "finish_reason": reply.finish_reason(choice.finish_reason or "stop"),
                    "logprobs": {"content": reply.logprobs} if self._asked.logprobs else None,
                }
            )
        return self._body("chat.completion", told) | {"usage": writing.usage}

    async def stream(self, writing: Writing) -> AsyncIterator[bytes]:
        """Piece by piece."""
        for choice in writing.choices:
            yield event(self._chunk(choice.index, {"role": "assistant", "content": ""}))
        async for choice, event_ in writing.events():
            reply = self._replies[choice.index]
            told = self._tell(choice, event_)
            for delta in reply.take(choice):
                yield event(self._chunk(choice.index, self._delta(choice.index, delta), logprobs=told))
                told = []
            if told:
                yield event(self._chunk(choice.index, {}, logprobs=told))
            if choice.finish_reason is not None:
                yield event(self._chunk(choice.index, {}, reason=reply.finish_reason(choice.finish_reason)))
        if self._asked.include_usage:
            yield event(self._body("chat.completion.chunk", []) | {"usage": writing.usage})

    def _chunk(
        self, index: int, delta: dict[str, Any], *, reason: str | None = None, logprobs: Sequence[dict[str, Any]] = ()
    ) -> dict[str, Any]:
        told = {"content": list(logprobs)} if logprobs else None
        choice = {"index": index, "delta": delta, "logprobs": told, "finish_reason": reason}
        return self._body("chat.completion.chunk", [choice])

    def _delta(self, choice: int, delta: Delta) -> dict[str, Any]:
        match delta:
            case ContentDelta():
                return {"content": delta.text}
            case ReasoningDelta():
                return {"reasoning_content": delta.text}
            case ToolCallStarted():
                function = {"name": delta.name, "arguments": ""}
                call = {"id": self._call_id(choice, delta.index), "type": "function", "function": function}
                return {"tool_calls": [{"index": delta.index} | call]}
            case ToolCallArguments():
                return {"tool_calls": [{"index": delta.index, "function": {"arguments": delta.text}}]}
        return {"metadata": delta.text}

    def _call_id(self, choice: int, index: int) -> str:
        return f"call_{self._id[9:25]}{choice:02d}{index:02d}"

    def _tell(self, choice: Choice, event_: Event) -> list[dict[str, Any]]:
        """A token's log-probabilities, where they are asked for."""
        found = event_.logprobs
        if found is None:
            return []
        model = self._model
        told = token_object(model, found.token, found.logprob)
        told["top_logprobs"] = [token_object(model, token, logprob) for token, logprob in found.top]
        self._replies[choice.index].logprobs.append(told)
        return [told]
