"""What a model wrote, as a message: its text, its thoughts, and the tools it calls.

Sources: ``process_response`` in ``modeling_chatglm.py`` of THUDM/chatglm3-6b and in ``inference/glm_server.py`` of
THUDM/GLM-4; the templates of GLM-4-0414 and GLM-4.5, which show calls as the model writes them.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from glm_export.model_folder import parse_json
from glm_export.tokenizers.chat.messages import Message, Tools, checked_tools, function_of

ASSISTANT = "<|assistant|>"
ENDS = ("<|user|>", "<|observation|>", "<|endoftext|>", "</s>")
THINK, THINK_END = "<think>", "</think>"
CALL, CALL_END, KEY = "<tool_call>", "</tool_call>", "<arg_key>"
LONGEST_NAME = 128
"""Characters of a tool's name; a longer word is text. OpenAI's API allows 64."""
NAME_CHARACTER = r"[\w./:-]"
TOOL_NAME = re.compile(rf"{NAME_CHARACTER}{{1,{LONGEST_NAME}}}")
WHOLE_CALL = re.compile(rf"{CALL}\s*({TOOL_NAME.pattern})[^\S\n]*(?=\n|{KEY}|{CALL_END})(.*?){CALL_END}", re.DOTALL)
VALUE_BEGINS = re.compile(r"\s*<arg_value>")
TRAINED, TRAINED_TEXT = "[[训练时间]]", "2023年"
"""ChatGLM3's stand-in for when it was trained, and what the publisher writes instead."""

Functions = Mapping[str, Mapping[str, Any]] | None
"""Tools by name; None where nobody said which there are, and any name may be one."""
Call = tuple[str, dict[str, Any]]
"""A tool's name, and its arguments as JSON's values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What an assistant's turn within a reply is: a call, or text; ``metadata``: a tool that takes no arguments."""

    call: Call | None = None
    text: str = ""
    metadata: str = ""


Read = tuple[str, list[Call], str]
"""Content, calls, metadata."""


def parse_reply(
    text: str, family: str, prompt: str, tools: Tools | None = None, *, thinking: bool | None = None
) -> Message:
    """A reply as an assistant's message, ready to stand in the conversation.

    Text that only looks like a call stays text, and half a call is text. Streamed, with equal result:
    :class:`~glm_export.tokenizers.streams.ReplyStream`.

    Args:
        text: what the model wrote. Names of special tokens in it (``<|assistant|>``) count, where they were kept.
        family: says how calls are written.
        prompt: what its file calls ``CHAT``.
        tools: those the model was given; they tell texts from numbers (GLM-4.5) and names from words (GLM-4).
        thinking: whether the prompt ended inside a thought, as that of GLM-Z1 does. None: it did where the reply ends
            one.

    Returns:
        ``content`` is None where there are calls alone; ``tool_calls``, with arguments as objects,
        ``reasoning_content`` and ``metadata`` are there where the reply has them.
    """
    for end in ENDS:
        text = text.partition(end)[0]
    functions, read = functions_of(tools), _READERS[how_calls_are_written(family, prompt)]
    inside = thinking if thinking is not None else THINK_END in text
    thought, text = _thought(text, inside=inside, calls=read is _xml)
    content, calls, metadata = read(text, functions)
    message = Message(role="assistant", content=content or (None if calls else ""))
    if thought:
        message["reasoning_content"] = thought
    if calls:
        message["tool_calls"] = [tool_call(name, arguments) for name, arguments in calls]
    if metadata:
        message["metadata"] = metadata
    return message


def how_calls_are_written(family: str, prompt: str) -> str:
    """A family whose calls are like no other's, else a prompt, else ``""``: no calls."""
    return next((name for name in (family, prompt) if name in _READERS), "")


def tool_call(name: str, arguments: Any) -> dict[str, Any]:
    """A call as a message has it."""
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def functions_of(tools: Tools | None) -> Functions:
    """Tools by their names: those the publisher built in go by their type."""
    return None if tools is None else {f["name"]: f for f in map(function_of, _named(tools))}


def _named(tools: Tools) -> Iterator[Mapping[str, Any]]:
    for tool in checked_tools(tools) or []:
        kind = tool.get("type")
        yield {"name": kind} if kind and "function" not in tool and "name" not in tool else tool


def _thought(text: str, *, inside: bool, calls: bool) -> tuple[str, str]:
    """The thought a reply begins with, and what follows it; a whole call ends a thought that nothing else has ended."""
    if text.lstrip().startswith(THINK):
        text = text.partition(THINK)[2]
    elif not inside:
        return "", text
    thought, _, answer = text.partition(THINK_END)
    call = next(whole_calls(thought), None) if calls else None
    if call is not None:
        return thought[: call.start()].strip(), text[call.start() :]
    return thought.strip(), answer


def _plain(text: str, _: Functions) -> Read:
    return text.strip(), [], ""


# -- GLM-4 and ChatGLM3: turns behind roles ----------------------------------------------------------------------------


def _by_turns(text: str, read: Callable[[str, str, Functions], Turn], functions: Functions) -> Read:
    turns = []
    for turn in text.split(ASSISTANT):
        first, newline, rest = turn.partition("\n")
        turns.append(read(first.strip(), rest, functions) if newline else read("", turn, functions))
    metadata = [turn.metadata for turn in turns if turn.metadata]
    texts = "\n".join(turn.text for turn in turns if turn.text)
    return texts, [turn.call for turn in turns if turn.call], metadata[-1] if metadata else ""


def _role_lines(text: str, functions: Functions) -> Read:
    return _by_turns(text, role_lines_turn, functions)


def _role_parts(text: str, functions: Functions) -> Read:
    content, calls, metadata = _by_turns(text, role_parts_turn, functions)
    return content.replace(TRAINED, TRAINED_TEXT), calls, metadata


def role_lines_turn(name: str, rest: str, functions: Functions) -> Turn:
    """GLM-4 and GLM-4-0414: the tool's name, a line end, its arguments in JSON.

    Args:
        name: what stands behind the role.
        rest: the lines below.
        functions: known tools.
    """
    arguments = _json_object(rest)
    known = TOOL_NAME.fullmatch(name) and (functions is None or name in functions)
    if known and arguments is not None:
        return Turn(call=(name, arguments))
    if known and functions is not None:  # a tool that takes no JSON, as the publisher's python
        return Turn(metadata=name, text=rest.strip())
    return Turn(text=f"{name}\n{rest}".strip())


def role_parts_turn(name: str, rest: str, functions: Functions) -> Turn:
    """ChatGLM3: the tool's name, a line end, a call of ``tool_call`` in Python. As :func:`role_lines_turn`."""
    lines = rest.strip().split("\n")
    fenced = len(lines) > 1 and lines[0].startswith("```")
    arguments = _python_call("\n".join(lines[1:-1])) if fenced else None
    if not fenced or not TOOL_NAME.fullmatch(name):
        return Turn(text=f"{name}\n{rest}".strip())
    if arguments is not None and (functions is None or name in functions):
        return Turn(call=(name, arguments))
    return Turn(metadata=name, text=rest.strip())


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        value = parse_json(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _python_call(source: str) -> dict[str, Any] | None:
    """Arguments of ``tool_call(name=value)``, read and never run; None where they are not what JSON can say."""
    try:
        call = ast.parse(source.strip(), mode="eval").body
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "tool_call":
            if call.args or any(keyword.arg is None for keyword in call.keywords):
                return None
            values = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
            return _json_object(json.dumps(values))
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError):
        pass
    return None


# -- GLM-4.5: calls in tags --------------------------------------------------------------------------------------------


def _xml(text: str, functions: Functions) -> Read:
    """What stands between or after calls is no answer."""
    found = list(whole_calls(text))
    calls = [xml_call(call[1], call[2], functions) for call in found]
    return text[: found[0].start() if found else None].strip(), calls, ""


def whole_calls(text: str) -> Iterator[re.Match[str]]:
    """Calls with a name, from their first tag to their last; what follows the last ``</tool_call>`` is not searched."""
    return WHOLE_CALL.finditer(text, 0, text.rfind(CALL_END) + len(CALL_END) if CALL_END in text else 0)


def xml_call(name: str, body: str, functions: Functions) -> Call:
    """A call of GLM-4.5.

    Args:
        name: the tool's.
        body: what holds its keys and values.
        functions: known tools; a value is text where the schema says so, else JSON where it is some.
    """
    schema: Any = (functions or {}).get(name)
    for key in ("parameters", "properties"):
        schema = schema.get(key) if isinstance(schema, Mapping) else None
    known = schema if isinstance(schema, Mapping) else {}
    return name, {key: _value(value, known.get(key)) for key, value in _arguments(body)}


def _arguments(body: str) -> Iterator[tuple[str, str]]:
    """Keys and values, in one pass: text a user wrote may have thousands of tags that close nowhere."""
    at = 0
    while (start := body.find(KEY, at)) >= 0 and (end := body.find("</arg_key>", start)) >= 0:
        at = end + len("</arg_key>")
        if value := VALUE_BEGINS.match(body, at):
            close = body.find("</arg_value>", value.end())
            if close < 0:
                return
            yield body[start + len(KEY) : end].strip(), body[value.end() : close]
            at = close


def _value(text: str, schema: Any) -> Any:
    """A text where the schema says so, else JSON where it is some."""
    if isinstance(schema, Mapping) and schema.get("type") == "string":
        return text
    try:
        return parse_json(text)
    except ValueError:
        return text


_READERS: dict[str, Callable[[str, Functions], Read]] = {
    "": _plain,
    "glm4_moe": _xml,
    "role_lines": _role_lines,
    "role_parts": _role_parts,
}
