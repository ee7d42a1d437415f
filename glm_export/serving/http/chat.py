"""``POST /v1/chat/completions``: a conversation's next message, whole or as it is written."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request as HttpRequest
from fastapi.responses import Response

from glm_export.serving.http.asking import RowOptions, choices, messages_of, model_of, options_of, token_object
from glm_export.serving.http.connection import while_connected
from glm_export.serving.http.failures import HttpError
from glm_export.serving.http.schemas import ChatRequest
from glm_export.serving.http.served import ServedModel
from glm_export.serving.http.streaming import event, streamed
from glm_export.serving.http.writing import Choice, Entered, Writing
from glm_export.serving.request import Event
from glm_export.tokenizers import ends_in_thought
from glm_export.tokenizers.streams import (
    ContentDelta,
    Delta,
    ReasoningDelta,
    ReplyStream,
    ToolCallArguments,
    ToolCallStarted,
    message_of,
)

router = APIRouter()


@dataclass(slots=True, kw_only=True)
class Reply:
    """What one choice has said. ``deltas``: all so far. ``logprobs``: of its tokens."""

    stream: ReplyStream
    deltas: list[Delta] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    calls: int = 0

    def take(self, choice: Choice) -> list[Delta]:
        """What is new."""
        new = self.stream.feed(choice.new)
        if choice.finish_reason is not None:
            new += self.stream.finish()
        self.deltas += new
        self.calls += sum(isinstance(delta, ToolCallStarted) for delta in new)
        return new

    def finish_reason(self, reason: str) -> str:
        """A reply that calls tools ends for them."""
        return "tool_calls" if self.calls and reason == "stop" else reason


@router.post("/v1/chat/completions")
async def chat(http: HttpRequest, asked: ChatRequest) -> Response:
    """The assistant's next message."""
    model = model_of(http, asked.model)
    tools = tools_of(asked)
    ids = model.tokenizer.chat(
        messages_of(http, model, asked.messages),
        tools=tools,
        documents=asked.documents,
        options=asked.chat_template_kwargs,
    )
    prompt = model.prompt(ids)
    most = asked.max_completion_tokens if asked.max_completion_tokens is not None else asked.max_tokens
    top = (asked.top_logprobs or 0) if asked.logprobs else None
    rows = RowOptions(max_new_tokens=model.context if most is None else most, names=True, top_logprobs=top)
    made = choices(http, model, asked, [prompt], rows)
    thinking = ends_in_thought(model.tokenizer, ids)
    replies = [Reply(stream=model.tokenizer.reply_stream(tools or [], thinking=thinking)) for _ in made]
    answer = _Answer(http, asked, model, replies)
    writing = Writing(model, made, options_of(http))
    if asked.stream:
        # Entered here: what cannot be accepted has a status of its own.
        await writing.__aenter__()
        return streamed(answer.stream(writing))
    async with writing:
        return await while_connected(http, answer.whole(writing))


def tools_of(asked: ChatRequest) -> list[dict[str, Any]] | None:
    """Tools the model is told of.

    Raises:
        HttpError: one must be called, which is not promised here.
    """
    if asked.tool_choice in (None, "auto"):
        return asked.tools
    if asked.tool_choice == "none":
        return None
    raise HttpError(
        400, "tool_choice is auto or none here: whether a tool is called, the model says", param="tool_choice"
    )


class _Answer:
    """What is told of a chat's choices, whole or piece by piece."""

    def __init__(self, http: HttpRequest, asked: ChatRequest, model: ServedModel, replies: Sequence[Reply]) -> None:
        self._asked, self._model, self._replies = asked, model, replies
        self._id, self._created = f"chatcmpl-{http.state.request_id[4:]}", int(time.time())

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
        """Piece by piece; the writing is left when nobody reads."""
        async with Entered(writing):
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
