"""ChatGLM3's prompt: parts with a role and what stands behind it, each encoded alone.

Sources: ``build_chat_input`` and ``build_single_message`` in ``tokenization_chatglm.py``, ``process_response`` in
``modeling_chatglm.py``, ``openai_api_demo/utils.py`` of THUDM/ChatGLM3 (tools and their answers).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from glm_export.errors import InputError
from glm_export.tokenizers.chat.messages import (
    ROLES,
    Tools,
    call_of,
    check_roles,
    checked,
    checked_tools,
    function_of,
    parsed_arguments,
    text_of,
)

TOOLS_GIVEN = "Answer the following questions as best as you can. You have access to the following tools:"
Part = tuple[str, str, str]
"""Role, what stands behind it, content."""


def role_parts(messages: Any, tools: Tools | None = None, documents: Tools | None = None) -> list[Part]:
    """A conversation as parts.

    Tools stand in a system message: the first of the conversation, or one that says what was said in training.

    Raises:
        InputError: the prompt cannot express the conversation.
    """
    messages, given = checked(messages), checked_tools(tools)
    if documents:
        raise InputError("ChatGLM3's prompt has no place for documents; put them into a message")
    if given and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": TOOLS_GIVEN, "tools": given}, *messages]
    elif given:
        if messages[0].get("tools"):
            raise InputError("tools are given twice, for the conversation and in its system message; give them once")
        messages = [messages[0] | {"tools": given}, *messages[1:]]
    return [part for message in messages for part in _parts(message)]


def _parts(message: dict[str, Any]) -> Iterator[Part]:
    role = "observation" if message["role"] == "tool" else message["role"]
    check_roles([{"role": role}], ROLES)
    content, calls = text_of(message.get("content")), message.get("tool_calls") or []
    if message.get("tools"):
        functions = [function_of(tool) for tool in message["tools"]]
        content = f"{content}\n{json.dumps(functions, indent=4, ensure_ascii=False)}"
    if content or not calls:
        yield role, message.get("metadata") or "", content
    for call in calls:
        name, arguments = call_of(call)
        yield "assistant", name, written_call(parsed_arguments(arguments))


def written_call(arguments: dict[str, Any]) -> str:
    """Arguments as ChatGLM3 writes them: a call in Python.

    Raises:
        InputError: a name is none in Python.
    """
    for name in arguments:
        if not name.isidentifier():
            raise InputError(f"ChatGLM3 writes calls as Python, where {name!r} is no argument's name; rename it")
    keywords = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    return f"```python\ntool_call({keywords})\n```"
