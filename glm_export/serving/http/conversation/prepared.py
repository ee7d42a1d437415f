"""From a conversation to the rows that write its next message."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fastapi import Request as HttpRequest

from glm_export.serving.http.asking import RowOptions, as_text, choices, forms_of, model_of, options_of
from glm_export.serving.http.failures import HttpError
from glm_export.serving.http.forms import matcher_for
from glm_export.serving.http.schemas import ChatRequest
from glm_export.serving.http.served import ServedModel
from glm_export.serving.http.writing import Choice, Writing
from glm_export.tokenizers import ends_in_thought
from glm_export.tokenizers.streams import Delta, ReplyStream, ToolCallStarted


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Rows that are to write a conversation's next message, ``replies`` of them.

    ``thinking``: whether they begin inside a thought, where the prompt ends in one.
    """

    model: ServedModel
    writing: Writing
    replies: list[Reply]
    thinking: bool


def ids_of(http: HttpRequest, model: ServedModel, asked: ChatRequest) -> list[int]:
    """A conversation as the model reads it.

    Raises:
        HttpError, InputError: the prompt cannot express it.
    """
    return model.tokenizer.chat(
        as_text(http, model, asked.messages),
        tools=as_text(http, model, tools_of(asked)),
        documents=as_text(http, model, asked.documents),
        options=asked.chat_template_kwargs,
    )


async def prepared(http: HttpRequest, asked: ChatRequest) -> Conversation:
    """Rows for a conversation, not begun.

    Raises:
        HttpError, InputError: there is no such model, or it cannot do what is asked.
    """
    model = model_of(http, asked.model)
    matcher = await matcher_for(forms_of(http, model), asked)
    ids = ids_of(http, model, asked)
    prompt = model.prompt(ids)
    most = asked.max_completion_tokens if asked.max_completion_tokens is not None else asked.max_tokens
    top = (asked.top_logprobs or 0) if asked.logprobs else None
    most = model.context if most is None else most
    rows = RowOptions(max_new_tokens=most, names=True, top_logprobs=top, matcher=matcher)
    made = choices(http, model, asked, [prompt], rows)
    thinking, tools = ends_in_thought(model.tokenizer, ids), tools_of(asked)
    replies = [Reply(stream=model.tokenizer.reply_stream(tools or [], thinking=thinking)) for _ in made]
    writing = Writing(model, made, options_of(http), http.state.tally)
    return Conversation(model=model, writing=writing, replies=replies, thinking=thinking)


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
