"""A conversation in the words of one template.

OpenAI's messages have ``tool_calls`` and the role ``tool``; GLM-4's and ChatGLM3's have ``metadata``, the role
``observation``, and tools within a system message. A template knows one of the two, and passes over the other without
a word. Which it knows is read from its source; what it has no place for is refused.

Source of the translation: ``process_messages`` in ``inference/glm_server.py`` of THUDM/GLM-4.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

from glm_export.errors import InputError
from glm_export.tokenizers.chat.messages import (
    ROLES,
    call_of,
    function_of,
    parsed_arguments,
    text_of,
    written_arguments,
)
from glm_export.tokenizers.chat.renderer import TemplateFailedError

TOOL, OBSERVATION = "tool", "observation"


Render = Callable[[list[dict[str, Any]], list[dict[str, Any]] | None], str]
"""A conversation and tools as text."""


def as_template_spells(template: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation, so that the template reads every turn of it.

    Args:
        template: its source.
        messages: checked ones.

    Raises:
        InputError: the template has no place for a role, or for calls of tools.
    """
    translated = not _reads(template, "tool_calls") and any(message.get("tool_calls") for message in messages)
    spelled: list[dict[str, Any]] = []
    for message in messages:
        if message.get("metadata") and not _reads(template, "metadata"):
            _refuse("metadata")
        if translated and message.get("tool_calls"):
            if not _reads(template, "metadata"):
                _refuse("tool_calls")
            spelled += _as_metadata(message)
        else:
            spelled.append(message | {"role": _role(template, message["role"], translated=translated)})
    return spelled


def with_tools_read(
    text: Render, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """The conversation and the tools where the template reads them: beside the messages, or in a system message.

    A template's source does not show it: GLM-4's sets a variable of the same name. So it is tried.

    Args:
        text: renders.
        messages: spelled as the template does.
        tools: given for the conversation.

    Raises:
        InputError: it reads them nowhere.
    """
    if tools and not changed(text(messages, tools), lambda: text(messages, None)):
        listed = [tool if "function" in tool else {"type": "function", "function": function_of(tool)} for tool in tools]
        before: dict[str, Any] = {"role": "system", "content": None}
        within = [before | {"tools": listed}, *messages]
        if not changed(text(within, None), lambda: text([before, *messages], None)):
            _refuse("tools")
        return within, None
    if any(message.get("tools") for message in messages):
        without = [{key: value for key, value in message.items() if key != "tools"} for message in messages]
        if not changed(text(messages, tools), lambda: text(without, tools)):
            lifted = [tool for message in messages for tool in message.get("tools") or []]
            if tools or not changed(text(without, lifted), lambda: text(without, None)):
                _refuse("tools of a message")
            return without, lifted
    return messages, tools


def changed(text: str, other: Callable[[], str]) -> bool:
    """Whether another rendering gives another text, or none."""
    try:
        return text != other()
    except TemplateFailedError:
        return True


def _refuse(what: str) -> NoReturn:
    raise InputError(f"the folder's chat template has no place for {what}; leave it out, or use another template")


def _reads(template: str, key: str) -> bool:
    """Whether a template looks a key of an object up."""
    return re.search(rf"\.{re.escape(key)}\b|['\"]{re.escape(key)}['\"]", template) is not None


def _names(template: str, role: str) -> bool:
    return re.search(rf"['\"]{re.escape(role)}['\"]", template) is not None


def _role(template: str, role: str, *, translated: bool) -> str:
    """The role as the template calls it. One that writes whatever role it is given is left to do so."""
    if role == TOOL and not _names(template, TOOL) and (translated or _names(template, OBSERVATION)):
        return OBSERVATION
    if role == OBSERVATION and not _names(template, OBSERVATION) and _names(template, TOOL):
        return TOOL
    if role not in (*ROLES, TOOL) and not _names(template, role):
        raise InputError(f"role {role!r} is not in the folder's chat template; GLMs know {', '.join(ROLES)}")
    return role


def _as_metadata(message: dict[str, Any]) -> list[dict[str, Any]]:
    """A turn of calls as GLM-4 has it: one turn a call, its name behind the role."""
    rest = {key: value for key, value in message.items() if key != "tool_calls"}
    turns = [rest] if message.get("content") else []
    for call in message["tool_calls"]:
        name, arguments = call_of(call)
        turns.append({"role": message["role"], "metadata": name, "content": written_arguments(arguments)})
    return turns


def forms(messages: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The conversation as it was given, then as templates may want it: parts joined, arguments the other way."""
    tried: list[Any] = []
    for parts in (lambda message: message, _joined):
        for calls in (lambda message: message, _parsed, _written):
            form = [calls(parts(message)) for message in messages]
            if form not in tried:
                tried.append(form)
                yield form


def _joined(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    return message | {"content": text_of(content)} if isinstance(content, list) else message


def _parsed(message: dict[str, Any]) -> dict[str, Any]:
    return _with_arguments(message, parsed_arguments)


def _written(message: dict[str, Any]) -> dict[str, Any]:
    return _with_arguments(message, written_arguments)


def _with_arguments(message: dict[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    calls = []
    for call in message.get("tool_calls") or []:
        inner = call.get("function")
        if isinstance(inner, Mapping):
            calls.append({**call, "function": {**inner, "arguments": change(inner.get("arguments", {}))}})
        else:
            calls.append({**call, "arguments": change(call.get("arguments", {}))})
    return message | {"tool_calls": calls} if calls else message
