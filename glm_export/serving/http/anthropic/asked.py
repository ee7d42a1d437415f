"""What a request says by Anthropic's names, and the same as a chat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from glm_export.serving.http.failures import HttpError
from glm_export.serving.http.schemas import MOST_STOPS, WHOLE, ChatRequest

BETWEEN_TURNS = "\n\n"
"""Of one role: they are one turn."""


class CountRequest(BaseModel):
    """``POST /v1/messages/count_tokens``."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    model: str | None = None
    messages: list[dict[str, Any]] = Field(min_length=1, max_length=4096)
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = Field(None, max_length=256)
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None

    def chat(self, **written: Any) -> ChatRequest:
        """The same as a chat.

        Args:
            **written: how it is written, by a chat's names; checked before.

        Raises:
            HttpError: a message or tool is none a model here can read.
        """
        kinds = (self.tool_choice or {}).get("type", "auto")
        return ChatRequest.model_construct(
            model=self.model,
            messages=_system(self.system) + messages_of_blocks(self.messages),
            tools=None if self.tools is None else [_tool(tool) for tool in self.tools],
            tool_choice=kinds,
            chat_template_kwargs=_template_options(self.thinking),
            **written,
        )


class MessagesRequest(CountRequest):
    """``POST /v1/messages``."""

    max_tokens: int = Field(ge=0, lt=WHOLE)
    stop_sequences: list[str] | None = Field(None, max_length=MOST_STOPS)
    stream: bool = False
    output_config: dict[str, Any] | None = None
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=WHOLE)

    def to_write(self) -> ChatRequest:
        """The same as a chat."""
        return self.chat(
            max_tokens=self.max_tokens,
            stop=self.stop_sequences,
            stream=self.stream,
            response_format=_format(self.output_config),
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
        )


def _system(system: str | Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    if not system:
        return []
    return [{"role": "system", "content": _texts_of(system, "system")}]


def _format(config: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """How the text is to look, by a chat's names."""
    asked = (config or {}).get("format")
    if not isinstance(asked, Mapping):
        return None
    return {"type": asked.get("type"), "json_schema": {"name": "answer", "schema": asked.get("schema")}}


def _template_options(thinking: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if thinking is None else {"enable_thinking": thinking.get("type") != "disabled"}


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    if tool.get("type") not in (None, "custom"):
        raise HttpError(
            400, f"a tool of type {str(tool['type'])[:40]!r} runs at Anthropic; give functions", param="tools"
        )
    names = {"name": "name", "description": "description", "input_schema": "parameters"}
    return {"type": "function", "function": {names[key]: value for key, value in tool.items() if key in names}}


def messages_of_blocks(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Turns of content blocks as a chat's messages: results of tools are messages of their own.

    Raises:
        HttpError: a block is none a model here can read, or the assistant has the last word.
    """
    found: list[dict[str, Any]] = []
    for message in messages:
        role, content = message.get("role"), message.get("content")
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if role not in ("user", "assistant", "system") or not isinstance(blocks, list):
            raise HttpError(
                400, "a message has a role, user or assistant, and content, a text or blocks", param="messages"
            )
        made = _assistant(blocks) if role == "assistant" else _said(role, blocks)
        if found and made and found[-1]["role"] == made[0]["role"] != "tool":
            _join(found[-1], made.pop(0))
        found += made
    if found and found[-1]["role"] == "assistant":
        raise HttpError(
            400, "the assistant has the last word; its message is written anew here, not gone on with", param="messages"
        )
    return found


def _join(last: dict[str, Any], more: dict[str, Any]) -> None:
    for name, between in (("content", BETWEEN_TURNS), ("reasoning_content", BETWEEN_TURNS)):
        texts = [text for text in (last.get(name), more.get(name)) if text]
        if texts:
            last[name] = between.join(texts)
    if more.get("tool_calls"):
        last["tool_calls"] = last.get("tool_calls", []) + more["tool_calls"]


def _said(role: str, blocks: Sequence[Any]) -> list[dict[str, Any]]:
    """What a user says, and what tools answered, in their order."""
    found: list[dict[str, Any]] = []
    for block in blocks:
        if isinstance(block, Mapping) and block.get("type") == "tool_result":
            answer = _texts_of(block.get("content") or "", "tool_result")
            found.append({"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": answer})
        elif found and found[-1]["role"] == role:
            found[-1]["content"] += _text_of(block, role)
        else:
            found.append({"role": role, "content": _text_of(block, role)})
    return found


def _assistant(blocks: Sequence[Any]) -> list[dict[str, Any]]:
    """What was thought, said and called; thoughts that nobody here can read are left out."""
    texts, thoughts = "", ""
    calls: list[dict[str, Any]] = []
    for block in blocks:
        kind = block.get("type") if isinstance(block, Mapping) else None
        if kind == "tool_use":
            function = {"name": block.get("name"), "arguments": block.get("input") or {}}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif kind == "thinking":
            thoughts += str(block.get("thinking") or "")
        elif kind != "redacted_thinking":
            texts += _text_of(block, "assistant")
    message: dict[str, Any] = {"role": "assistant", "content": texts or (None if calls else "")}
    if thoughts:
        message["reasoning_content"] = thoughts
    if calls:
        message["tool_calls"] = calls
    return [message]


def _texts_of(content: Any, where: str) -> str:
    """A text, or blocks of it."""
    if isinstance(content, str):
        return content
    return "".join(_text_of(block, where) for block in (content if isinstance(content, list) else [content]))


def _text_of(block: Any, where: str) -> str:
    text = block.get("text") if isinstance(block, Mapping) and block.get("type") == "text" else None
    if not isinstance(text, str):
        kind = str(block.get("type"))[:40] if isinstance(block, Mapping) else type(block).__name__
        raise HttpError(
            400,
            f"a block {kind!r} of {where} cannot be read here; give {{'type': 'text', 'text': …}}",
            param="messages",
        )
    return text
