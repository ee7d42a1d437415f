"""Messages: what a conversation is made of, in the words of the OpenAI API and of the publishers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Required, TypedDict

from glm_export.errors import InputError, shown
from glm_export.model_folder import parse_json

ROLES = ("system", "user", "assistant", "observation")


class Message(TypedDict, total=False):
    """One turn.

    ``role``: system, user, assistant, observation, or tool, which is OpenAI's word for the latter. ``content``: a text,
    parts of it (``{"type": "text", "text": …}``), or None where there are calls alone. ``tool_calls``: of an
    assistant, ``{"type": "function", "function": {"name": …, "arguments": an object or its JSON}}``.
    ``metadata``: of an assistant, what stands behind its role: a tool's name, or ``interpreter``. ``tools``: of a
    system message, as in the publishers' code. ``reasoning_content``: of an assistant, what it thought.
    """

    role: Required[str]
    content: Any
    tool_calls: list[dict[str, Any]]
    metadata: str
    tools: list[dict[str, Any]]
    reasoning_content: str


Tools = Sequence[Mapping[str, Any]]
"""Functions a model may call: OpenAI's ``{"type": "function", "function": {"name", "description", "parameters"}}``, or
the inner objects alone."""


def check_roles(messages: Iterable[Mapping[str, Any]], known: tuple[str, ...] = ROLES) -> None:
    """Refuse an empty conversation and unknown roles.

    Raises:
        InputError: naming the role.
    """
    messages = list(messages)
    if not messages:
        raise InputError("a conversation needs at least one message")
    for message in messages:
        if message["role"] not in known:
            raise InputError(f"role {message['role']!r} is not in this model's prompt; it knows {', '.join(known)}")


def checked(messages: Any) -> list[dict[str, Any]]:
    """The messages, if they are what :class:`Message` says.

    Raises:
        InputError: naming the message and what is wrong with it.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise InputError("a conversation needs at least one message; give a list of objects with role and content")
    for place, message in enumerate(messages):
        where = f"message {place}"
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InputError(f"{where} should be an object with a role, found {_shown(message)}")
        _check_content(message.get("content"), where)
        for call in _list_of(message, "tool_calls", where):
            call_of(call, where)
        _list_of(message, "tools", where)
        for name in ("metadata", "reasoning_content"):
            if not isinstance(message.get(name), str | None):
                raise InputError(f"{name} of {where} should be a text, found {_shown(message[name])}")
        _require_json(message, where)
    return [dict(message) for message in messages]


def _check_content(content: Any, where: str) -> None:
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list):
        raise InputError(f"content of {where} should be a text or a list of parts, found {_shown(content)}")
    for part in content:
        if isinstance(part, str):
            continue
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise InputError(
                f"{where} has a part {_shown(part)}; this program reads text, give {{'type': 'text', 'text': …}}"
            )


def _list_of(message: Mapping[str, Any], name: str, where: str) -> list[Any]:
    value = message.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise InputError(f"{name} of {where} should be a list of objects, found {_shown(value)}")
    return value


def _require_json(value: Any, where: str) -> None:
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{where} should be JSON's objects, lists, texts and numbers: {error}") from error


def _shown(value: Any) -> str:
    return shown(value, 60)


def checked_tools(tools: Any, name: str = "tools") -> list[dict[str, Any]] | None:
    """Tools or documents as a list of objects; None where none are given.

    Raises:
        InputError: they are something else.
    """
    if tools is None:
        return None
    if not isinstance(tools, Sequence) or isinstance(tools, str) or not all(isinstance(t, Mapping) for t in tools):
        raise InputError(f"{name} should be a list of objects, found {_shown(tools)}")
    _require_json(list(tools), name)
    return [dict(tool) for tool in tools]


def text_of(content: Any) -> str:
    """Content as one text: parts stand right behind each other."""
    if isinstance(content, list):
        return "".join(part if isinstance(part, str) else part["text"] for part in content)
    return content or ""


def function_of(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool's function: name, description, parameters.

    Raises:
        InputError: it has no name, or is none of the functions this prompt can offer.
    """
    function = tool["function"] if isinstance(tool.get("function"), Mapping) else tool
    if not isinstance(function.get("name"), str):
        raise InputError(f"a tool should be a function with a name, found {_shown(dict(tool))}")
    return dict(function)


def call_of(call: Mapping[str, Any], where: str = "the conversation") -> tuple[str, Any]:
    """Name and arguments of a tool call; arguments are an object, or the text they were given as.

    Raises:
        InputError: it is no call of a function.
    """
    function = call["function"] if isinstance(call.get("function"), Mapping) else call
    name, arguments = function.get("name"), function.get("arguments", {})
    if not isinstance(name, str) or not isinstance(arguments, str | Mapping):
        raise InputError(
            f"a tool call of {where} should be {{'function': {{'name': …, 'arguments': …}}}}, "
            f"found {_shown(dict(call))}"
        )
    return name, arguments


def parsed_arguments(arguments: Any) -> dict[str, Any]:
    """Arguments of a call as an object.

    Raises:
        InputError: the text is no JSON object.
    """
    if isinstance(arguments, Mapping):
        return dict(arguments)
    try:
        values = parse_json(arguments) if arguments.strip() else {}
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise InputError(f"arguments of a tool call should be an object or its JSON, found {_shown(arguments)}")
    return values


def written_arguments(arguments: Any) -> str:
    """Arguments of a call as text: as they were given, or as JSON."""
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def refuse_tools(messages: list[dict[str, Any]], tools: Any, documents: Any, model: str) -> None:
    """For prompts that were trained on words alone.

    Raises:
        InputError: there is something the prompt has no place for.
    """
    found = [name for name, value in (("tools", tools), ("documents", documents)) if value]
    for message in messages:
        found += [name for name in ("tools", "tool_calls", "metadata") if message.get(name)]
    if found:
        raise InputError(f"{model}'s prompt has no place for {' and '.join(sorted(set(found)))}; leave them out")
