"""Turns of a conversation as data sets spell them -> messages as tokenizers take them.

Sources: ``process_message`` in ``finetune_demo/finetune.py`` of THUDM/GLM-4; ``format_conversation`` in
``finetune_chatmodel_demo/preprocess_utils.py`` of THUDM/ChatGLM3.
"""

from __future__ import annotations

import json
from typing import Any, cast

from glm_export.errors import InputError
from glm_export.tokenizers.chat import Message

SPELLINGS = {
    "human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "function_call": "assistant",
    "function_response": "observation",
}  # fmt: skip
"""Roles as ShareGPT and its followers name them; others stay as they are."""


TOOLS_GIVEN = "Answer the following questions as best as you can. You have access to the following tools:"
"""What ChatGLM3 was trained to read before its tools; GLM-4's own text stands in its prompt format."""


def string_field(value: Any, name: str) -> str:
    """A row's text, with something in it."""
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{name} should be a string that is not blank, found {str(value)[:40]!r}; rewrite it")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise InputError(f"{name} has half of a surrogate pair, which is no character; rewrite it")
    return value


def conversation(
    turns: Any,
    *,
    name: str = "messages",
    tools: Any = None,
    preface: str = "",
    system: Any = None,
    reply: str = "content",
) -> list[Message]:
    """Messages with ``role`` and ``content``, and ``tools`` where the system message has them.

    Args:
        turns: objects with ``role`` and ``content``, or with ``from`` and ``value``.
        name: the key they stand under, for errors.
        tools: given for the whole row; they go into its system message, which is made where there is none.
        preface: the text of the system message that is made.
        system: the same of a system message.
        reply: the key the last turn's content stood under, for errors.

    Raises:
        InputError: a turn has no role, or no text.
    """
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise InputError(f"{name} should be a list of objects with role and content, or from and value; rewrite it")
    if system:
        turns = [{"role": "system", "content": system}, *turns]
    if isinstance(tools, str):
        tools = _parsed(tools)
    if tools and (not turns or _role(turns[0]) != "system"):
        turns = [{"role": "system", "content": preface}, *turns]
    messages: list[Message] = []
    for place, turn in enumerate(turns):
        field = reply if place == len(turns) - 1 else "content"
        given = {"tools": tools} if tools and not place else {}
        messages += _messages(turn | given, field)
    return messages


def _role(turn: dict[str, Any]) -> str:
    role = string_field(turn.get("role", turn.get("from")), "role")
    return SPELLINGS.get(role, role)


def _messages(turn: dict[str, Any], field: str) -> list[Message]:
    role, content = _role(turn), turn.get("content", turn.get("value"))
    if role == "tool" and "observation" in turn:
        return _call(turn)
    if role == "system" and turn.get("tools"):
        # The publisher's own rows leave the text empty there.
        content = "" if content is None or content == "" else string_field(content, field)
        return [cast("Message", {"role": role, "content": content, "tools": turn["tools"]})]
    return [Message(role=role, content=string_field(content, field))]


def _call(turn: dict[str, Any]) -> list[Message]:
    """ChatGLM3's ``tool`` turn: a call the assistant writes as Python, and what came back."""
    name, parameters = string_field(turn.get("name"), "name"), turn.get("parameters")
    if not isinstance(parameters, dict) or not all(str(key).isidentifier() for key in parameters):
        raise InputError("a tool's parameters should be an object whose keys are names; rewrite the row")
    given = ", ".join(f"{key}={value!r}" for key, value in parameters.items())
    observation = turn["observation"]
    text = observation if isinstance(observation, str) else json.dumps(observation, ensure_ascii=False)
    call = {"role": "assistant", "metadata": name, "content": f"```python\ntool_call({given})\n```"}
    return [cast("Message", call), Message(role="observation", content=string_field(text, "observation"))]


def _parsed(tools: str) -> Any:
    try:
        return json.loads(tools)
    except (ValueError, RecursionError) as error:
        raise InputError(f"tools should be a list, or one written as JSON, found {tools[:40]!r}; rewrite it") from error
