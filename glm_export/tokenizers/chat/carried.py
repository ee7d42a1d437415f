"""The chat template other readers of an exported folder get: the one our own chat uses, with the same ids."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from glm_export.errors import InputError
from glm_export.tokenizers.chat.folder_template import DEFAULT, FolderTemplate
from glm_export.tokenizers.chat.messages import Message, Tools
from glm_export.tokenizers.chat.prompt import render_built_in
from glm_export.tokenizers.chat.renderer import render_apart
from glm_export.tokenizers.chat.templates import GUARD, guarded

logger = logging.getLogger(__name__)

CHATS: tuple[list[Message], ...] = (
    [{"role": "user", "content": "你好"}],
    [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": " 今天\n很好。"},
        {"role": "user", "content": "1+1=?\n\n"},
    ],
    [{"role": "system", "content": "You are GLM."}, {"role": "user", "content": ""}],
)
TOOLS: tuple[dict[str, Any], ...] = (
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "天气 of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
        },
    },
    {"type": "function", "function": {"name": "time", "description": "", "parameters": {}}},
)
CALLED: list[Message] = [
    {"role": "user", "content": "北京？"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"type": "function", "function": {"name": "weather", "arguments": {"city": "北京's", "days": 2}}}
        ],
    },
    {"role": "tool", "content": '{"sun": true}'},
]


class Chatting(Protocol):
    """What is asked of our reader."""

    @property
    def folder_template(self) -> FolderTemplate | None:
        """The folder's own; None where the family's prompt counts."""

    def chat(self, messages: list[Message], *, tools: Tools | None = None) -> list[int]:
        """Ids of a conversation."""


def carried_template(
    ours: Chatting, encode: Callable[[str], list[int]], built_in: str, names: Sequence[str] | None
) -> Any:
    """``chat_template`` of ``tokenizer_config.json``: a text, or a list of named ones; None where none is exact.

    Args:
        ours: our reader of the folder.
        encode: ids of a text as other readers will give them, without a prefix.
        built_in: the family's own template.
        names: tokens a folder's template calls by name, where others know them by a guarded one.
    """
    own = ours.folder_template
    if own is not None and names is None:
        return own.carried()
    if own is None:
        return built_in if _same(ours, encode, lambda *asked: render_built_in(built_in, *asked), tools=True) else None
    templates = {name: guarded(text, tuple(names or ())) for name, text in own.templates.items()}
    variables = {role: GUARD + text if isinstance(text, str) else text for role, text in own.variables.items()}

    def rendered(messages: list[Message], _: Any) -> str:
        given = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
        return render_apart(str(templates[DEFAULT]), {**variables, **given})

    exact = None not in templates.values()
    if not exact or (DEFAULT in templates and not _same(ours, encode, rendered, tools=False)):
        logger.warning(
            "the folder's chat template is not exact in tokenizer.json, where special tokens have names of their own; "
            "other readers get none, and glm-export reads the folder's"
        )
        return None
    return FolderTemplate(templates={name: str(text) for name, text in templates.items()}).carried()


def _same(
    ours: Chatting,
    encode: Callable[[str], list[int]],
    rendered: Callable[[list[Message], Any], str],
    *,
    tools: bool,
) -> bool:
    """Whether a template gives our prompt's ids for every conversation that the prompt can express."""
    asked: Iterable[tuple[list[Message], Any]] = [(chat, None) for chat in CHATS]
    if tools:
        asked = [*asked, *((chat, list(TOOLS)) for chat in (*CHATS, CALLED))]
    for chat, given in asked:
        try:
            expected = ours.chat(chat, tools=given)
        except InputError:
            continue
        if encode(rendered(chat, given)) != expected:
            return False
    return True
