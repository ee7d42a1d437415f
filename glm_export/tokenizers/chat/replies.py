"""What a model wrote, as a message: its text, its thoughts, and the tools it calls.

Sources: ``process_response`` in ``modeling_chatglm.py`` of THUDM/chatglm3-6b and in ``inference/glm_server.py`` of
THUDM/GLM-4; the templates of GLM-4-0414 and GLM-4.5, which show calls as the model writes them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from glm_export.model_folder import parse_json
from glm_export.tokenizers.chat.messages import Message, Tools, checked_tools, function_of

ASSISTANT = "<|assistant|>"
ENDS = ("<|user|>", "<|observation|>", "<|endoftext|>", "</s>")
CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
ARGUMENT = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)
TOOL_NAME = re.compile(r"[\w./:-]+")


def parse_reply(text: str, family: str, prompt: str, tools: Tools | None = None) -> Message:
    """A reply as an assistant's message, ready to stand in the conversation.

    Text that only looks like a call stays text.

    Args:
        text: what the model wrote. Names of special tokens in it (``<|assistant|>``) count, where they were kept.
        family: says how calls are written.
        prompt: what its file calls ``CHAT``.
        tools: those the model was given; they tell texts from numbers (GLM-4.5) and names from words (GLM-4).

    Returns:
        ``content`` is None where there are calls alone; ``tool_calls``, with arguments as objects,
        ``reasoning_content`` and ``metadata`` are there where the reply has them.
    """
    for end in ENDS:
        text = text.partition(end)[0]
    functions = {f["name"]: f for f in map(function_of, _functions(tools))} if tools is not None else None
    thought, text = _thought(text)
    read = _READERS.get(family) or _READERS.get(prompt) or _plain
    content, calls, metadata = read(text, functions)
    message = Message(role="assistant", content=content or (None if calls else ""))
    if thought:
        message["reasoning_content"] = thought
    if calls:
        message["tool_calls"] = [
            {"type": "function", "function": {"name": name, "arguments": arguments}} for name, arguments in calls
        ]
    if metadata:
        message["metadata"] = metadata
    return message


Functions = Mapping[str, Mapping[str, Any]] | None
Read = tuple[str, list[tuple[str, dict[str, Any]]], str]
"""Content, calls by name and arguments, metadata."""


def _functions(tools: Tools | None) -> Iterator[Mapping[str, Any]]:
    """Tools that have a name: those the publisher built in go by their type."""
    for tool in checked_tools(tools) or []:
        kind = tool.get("type")
        yield {"name": kind} if kind and "function" not in tool and "name" not in tool else tool


def _thought(text: str) -> tuple[str, str]:
    before, closed, after = text.rpartition("</think>")
    if closed:
        return before.split("<think>", 1)[-1].strip(), after
    if text.lstrip().startswith("<think>"):  # it ended before the thought did
        return text.split("<think>", 1)[1].strip(), ""
    return "", text


def _plain(text: str, _: Functions) -> Read:
    return text.strip(), [], ""


def _turns(text: str) -> Iterator[tuple[str, str]]:
    """What stands behind each assistant's role, and below it."""
    for turn in text.split(ASSISTANT):
        first, newline, rest = turn.partition("\n")
        yield (first.strip(), rest) if newline else ("", turn)


def _role_lines(text: str, functions: Functions) -> Read:
    """GLM-4 and GLM-4-0414: the tool's name, a line end, its arguments in JSON."""
    texts, calls, metadata = [], [], ""
    for name, rest in _turns(text):
        arguments = _json_object(rest)
        known = TOOL_NAME.fullmatch(name) and (functions is None or name in functions)
        if known and arguments is not None:
            calls.append((name, arguments))
        elif known and functions is not None:  # a tool that takes no JSON, as the publisher's python
            metadata = name
            texts.append(rest.strip())
        else:
            texts.append(f"{name}\n{rest}".strip())
    return "\n".join(filter(None, texts)), calls, metadata


def _role_parts(text: str, functions: Functions) -> Read:
    """ChatGLM3: the tool's name, a line end, a call of ``tool_call`` in Python."""
    texts, calls, metadata = [], [], ""
    for name, rest in _turns(text):
        lines = rest.strip().split("\n")
        fenced = len(lines) > 1 and lines[0].startswith("```")
        arguments = _python_call("\n".join(lines[1:-1])) if fenced else None
        named = TOOL_NAME.fullmatch(name) is not None
        if named and arguments is not None and (functions is None or name in functions):
            calls.append((name, arguments))
        elif named and fenced:
            metadata = name
            texts.append(rest.strip())
        else:
            texts.append(f"{name}\n{rest}".strip())
    # The publisher's stand-in for when the model was trained.
    return "\n".join(filter(None, texts)).replace("[[训练时间]]", "2023年"), calls, metadata


def _xml(text: str, functions: Functions) -> Read:
    """GLM-4.5: calls in tags; what stands between or after them is no answer."""
    calls = []
    for call in CALL.findall(text):
        name = re.split(r"\n|<arg_key>", call.strip(), maxsplit=1)[0].strip()
        if not name:
            return text.strip(), [], ""
        properties = ((functions or {}).get(name, {}).get("parameters") or {}).get("properties") or {}
        pairs = ((key.strip(), value) for key, value in ARGUMENT.findall(call))
        calls.append((name, {key: _value(value, properties.get(key)) for key, value in pairs}))
    return (text.partition("<tool_call>")[0] if calls else text).strip(), calls, ""


def _value(text: str, schema: Any) -> Any:
    """A text where the schema says so, else JSON where it is some."""
    if isinstance(schema, Mapping) and schema.get("type") == "string":
        return text
    try:
        return parse_json(text)
    except ValueError:
        return text


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        value = parse_json(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _python_call(source: str) -> dict[str, Any] | None:
    """Arguments of ``tool_call(name=value)``, read and never run."""
    try:
        call = ast.parse(source.strip(), mode="eval").body
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "tool_call":
            if call.args or any(keyword.arg is None for keyword in call.keywords):
                return None
            return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        pass
    return None


_READERS: dict[str, Callable[[str, Functions], Read]] = {
    "glm4_moe": _xml,
    "role_lines": _role_lines,
    "role_parts": _role_parts,
}
