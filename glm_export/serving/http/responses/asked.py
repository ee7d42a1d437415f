"""What a request for a response says, and the same as a chat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from glm_export.serving.http.failures import HttpError
from glm_export.serving.http.schemas import MOST_TOP, WHOLE, ChatRequest

ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
"""OpenAI's roles, and what a prompt here calls them."""
STORED = ("previous_response_id", "conversation", "store", "background", "prompt")
"""Fields that want something kept from one request to another."""
TEXTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text")


class ResponsesRequest(BaseModel):
    """``POST /v1/responses``."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    model: str | None = None
    input: str | list[dict[str, Any]] = Field(max_length=1 << 24)
    instructions: str | None = None
    tools: list[dict[str, Any]] | None = Field(None, max_length=256)
    tool_choice: Any = "auto"
    max_output_tokens: int | None = Field(None, ge=0, lt=WHOLE)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, ge=0, le=1)
    top_logprobs: int | None = Field(None, ge=0, le=MOST_TOP)
    stream: bool | None = False
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    store: bool | None = None
    background: bool | None = None
    prompt: Any = None

    def to_write(self) -> ChatRequest:
        """The same as a chat.

        Raises:
            HttpError: something is to be kept, or an item or tool is none a model here can read.
        """
        for name in STORED:
            if getattr(self, name):
                raise HttpError(
                    400, f"nothing is stored here: leave {name} out, and send the whole conversation", param=name
                )
        said = (
            [{"type": "message", "role": "user", "content": self.input}] if isinstance(self.input, str) else self.input
        )
        first = [{"role": "system", "content": self.instructions}] if self.instructions else []
        effort = (self.reasoning or {}).get("effort")
        return ChatRequest.model_construct(
            model=self.model,
            messages=first + messages_of_items(said),
            tools=None if self.tools is None else [_tool(tool) for tool in self.tools],
            tool_choice=self.tool_choice,
            max_tokens=self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            stream=self.stream,
            response_format=_format(self.text),
            chat_template_kwargs=None if effort is None else {"enable_thinking": effort != "none"},
        )


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise HttpError(
            400, f"a tool of type {str(tool.get('type'))[:40]!r} runs at OpenAI; give functions", param="tools"
        )
    return {
        "type": "function",
        "function": {key: value for key, value in tool.items() if key not in ("type", "strict")},
    }


def _format(text: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """How the text is to look, by a chat's names."""
    asked = (text or {}).get("format")
    if not isinstance(asked, Mapping) or asked.get("type") == "text":
        return None
    kind = asked.get("type")
    inner = {key: value for key, value in asked.items() if key != "type"}
    return {"type": kind, "json_schema": inner} if kind == "json_schema" else dict(asked)


def messages_of_items(items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A response's items as a chat's messages: thoughts, words and calls behind each other are one of them.

    Raises:
        HttpError: an item is none a model here can read, or there is none.
    """
    found: list[dict[str, Any]] = []
    for item in items:
        kind = item.get("type", "message")
        if kind == "message":
            role = ROLES.get(str(item.get("role")))
            if role is None:
                raise HttpError(400, f"a message has a role, one of {', '.join(ROLES)}", param="input")
            text = _text(item.get("content"), role)
            if role != "assistant":
                found.append({"role": role, "content": text})
            else:
                last = _assistant(found, "content")
                last["content"] = text
        elif kind == "reasoning":
            text = _text(item.get("content") or item.get("summary") or "", kind)
            _assistant(found, "reasoning_content", "content", "tool_calls")["reasoning_content"] = text
        elif kind == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments") or "{}"}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            _assistant(found).setdefault("tool_calls", []).append(call)
        elif kind == "function_call_output":
            text = _text(item.get("output"), kind)
            found.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": text})
        else:
            raise HttpError(
                400,
                f"an item {str(kind)[:40]!r} cannot be read here; give messages and calls of functions",
                param="input",
            )
    if not found:
        raise HttpError(400, "the input is empty; give a text or items", param="input")
    return found


def _assistant(found: list[dict[str, Any]], *new: str) -> dict[str, Any]:
    """The assistant's message that goes on: a new one where the last is another's, or has what comes before ``new``."""
    last = found[-1] if found else {}
    if last.get("role") != "assistant" or any(last.get(name) for name in new):
        found.append({"role": "assistant", "content": None})
    return found[-1]


def _text(content: Any, where: str) -> str:
    """A text, or parts of it."""
    if isinstance(content, str):
        return content
    texts = []
    for part in content if isinstance(content, list) else [content]:
        text = part.get("text") if isinstance(part, Mapping) and part.get("type") in TEXTS else None
        if not isinstance(text, str):
            kind = str(part.get("type"))[:40] if isinstance(part, Mapping) else type(part).__name__
            raise HttpError(400, f"a part {kind!r} of {where} cannot be read here; give texts", param="input")
        texts.append(text)
    return "".join(texts)
