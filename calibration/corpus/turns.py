"""Turns of a conversation as data sets spell them -> messages as tokenizers take them.

Sources: ``format_conversation`` in ``finetune_chatmodel_demo/preprocess_utils.py`` of THUDM/ChatGLM3 (``tool`` turns);
``src/llamafactory/data/converter.py`` of hiyouga/LLaMA-Factory (``function_call``).
"""

from __future__ import annotations

import json
from typing import Any, cast

from glm_export.errors import InputError
from glm_export.model_folder import parse_json
from glm_export.tokenizers.chat import Message

SPELLINGS = {
    "human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "function_call": "assistant",
    "function_response": "observation",
}  # fmt: skip
"""Roles as ShareGPT and its followers name them; others stay as they are."""


def string_field(value: Any, name: str) -> str:
    """A row's text, with something in it."""
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{name} should be a string that is not blank, found {str(value)[:40]!r}; rewrite it")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise InputError(f"{name} has half of a surrogate pair, which is no character; rewrite it")
    return value


def conversation(turns: Any, *, name: str = "messages", system: Any = None, reply: str = "content") -> list[Message]:
    """Messages with ``role`` and ``content``, and what else a tokenizer reads of them.

    Args:
        turns: objects with ``role`` and ``content``, or with ``from`` and ``value``.
        name: the key they stand under, for errors.
        system: a system message given for the whole row.
        reply: the key the last turn's content stood under, for errors.

    Raises:
        InputError: a turn has no role, or no text.
    """
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise InputError(f"{name} should be a list of objects with role and content, or from and value; rewrite it")
    if system:
        turns = [{"role": "system", "content": system}, *turns]
    messages: list[Message] = []
    for place, turn in enumerate(turns):
        messages += _messages(turn, reply if place == len(turns) - 1 else "content")
    return messages


def tools_of(row: dict[str, Any]) -> Any:
    """The tools given for a whole row: a list, which some sets write as JSON in a string; None where there are none."""
    tools = row.get("tools")
    if not isinstance(tools, str):
        return tools or None
    try:
        return parse_json(tools) or None
    except ValueError as error:
        raise InputError(f"tools should be a list, or one written as JSON, found {tools[:40]!r}; rewrite it") from error


def _messages(turn: dict[str, Any], field: str) -> list[Message]:
    spelled = string_field(turn.get("role", turn.get("from")), "role")
    content = turn.get("content", turn.get("value"))
    if spelled == "tool" and "observation" in turn:
        return _called(turn)
    if spelled == "function_call":
        return [_calls(string_field(content, field))]
    beside = {key: turn[key] for key in Message.__annotations__ if turn.get(key) and key not in ("role", "content")}
    # Beside tools or calls there may be no text; parts of a text are the tokenizer's to judge.
    if not isinstance(content, list) and (content or not beside):
        content = string_field(content, field)
    return [cast("Message", {"role": SPELLINGS.get(spelled, spelled), "content": content or "", **beside})]


def _called(turn: dict[str, Any]) -> list[Message]:
    """ChatGLM3's ``tool`` turn: a call, and what came back."""
    name, parameters = string_field(turn.get("name"), "name"), turn.get("parameters")
    if not isinstance(parameters, dict):
        raise InputError(f"a tool's parameters should be an object, found {str(parameters)[:40]!r}; rewrite the row")
    observation = turn["observation"]
    text = observation if isinstance(observation, str) else json.dumps(observation, ensure_ascii=False)
    call = {"type": "function", "function": {"name": name, "arguments": parameters}}
    said = Message(role="observation", content=string_field(text, "observation"))
    return [Message(role="assistant", content="", tool_calls=[call]), said]


def _calls(text: str) -> Message:
    """A ``function_call`` turn: one call or several as JSON; anything else is what the assistant said."""
    try:
        found = parse_json(text)
    except ValueError:
        found = None
    calls = found if isinstance(found, list) else [found]
    if not all(isinstance(call, dict) and {"name", "arguments"} <= call.keys() for call in calls):
        return Message(role="assistant", content=text)
    return Message(role="assistant", content="", tool_calls=[{"type": "function", "function": call} for call in calls])
