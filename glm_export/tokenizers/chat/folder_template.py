"""The chat template a model's folder has, and what it is given.

Source of what is read and in which order: ``PreTrainedTokenizerBase._from_pretrained``, ``get_chat_template`` and
``apply_chat_template`` of transformers 4.57; ``chat_template.json`` is what its processors wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glm_export.errors import CheckpointError, InputError
from glm_export.model_folder import inside, read_json
from glm_export.tokenizers.chat.messages import checked, checked_tools
from glm_export.tokenizers.chat.renderer import TemplateFailedError, render_apart
from glm_export.tokenizers.chat.spelling import as_template_spells, changed, forms, with_tools_read
from glm_export.tokenizers.marks import EXTRA, ROLES, optional_json

CONFIG, FILE, LEGACY, NAMED = (
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates",
)
DEFAULT, TOOL_USE = "default", "tool_use"


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderTemplate:
    """Templates by name, of which one is used.

    ``variables``: what they may read beside the conversation, as the folder's special tokens by role.
    """

    templates: Mapping[str, str]
    variables: Mapping[str, Any] = field(default_factory=dict)

    def chosen(self, tools: Any) -> str:
        """The one for conversations with tools, where there is one, else the default.

        Raises:
            InputError: neither is there.
        """
        name = TOOL_USE if tools is not None and TOOL_USE in self.templates else DEFAULT
        if name not in self.templates:
            raise InputError(
                f"the folder has the chat templates {', '.join(sorted(self.templates))} and no {DEFAULT}; name one so"
            )
        return self.templates[name]

    def carried(self) -> str | list[dict[str, str]]:
        """As ``tokenizer_config.json`` has it."""
        if set(self.templates) == {DEFAULT}:
            return self.templates[DEFAULT]
        return [{"name": name, "template": text} for name, text in self.templates.items()]

    def render(
        self, messages: Any, tools: Any = None, documents: Any = None, options: Mapping[str, Any] | None = None
    ) -> str:
        """A conversation's text, up to where the model writes.

        Args:
            messages: see :class:`~glm_export.tokenizers.chat.messages.Message`.
            tools: functions the model may call.
            documents: objects with title and text.
            options: what else the template reads, by name, as ``enable_thinking``.

        Raises:
            InputError: the template has no place for something, refuses the conversation or is broken.
        """
        conversation, functions = checked(messages), checked_tools(tools)
        listed = checked_tools(documents, "documents")
        template = self.chosen(functions)
        conversation = as_template_spells(template, conversation)
        values = {**self.variables, **(options or {}), "documents": listed, "add_generation_prompt": True}

        def text(turns: list[dict[str, Any]], given: Any, **other: Any) -> str:
            return _render(template, turns, {**values, "tools": given, **other})

        conversation, functions = with_tools_read(text, conversation, functions)
        rendered = text(conversation, functions)
        if listed and not changed(rendered, lambda: text(conversation, functions, documents=None)):
            raise InputError("the folder's chat template has no place for documents; put them into a message")
        return rendered


def _render(template: str, messages: list[dict[str, Any]], values: dict[str, Any]) -> str:
    """The conversation in the first form that the template takes."""
    failed: TemplateFailedError | None = None
    for form in forms(messages):
        try:
            return render_apart(template, {**values, "messages": form})
        except TemplateFailedError as error:
            failed = failed or error
    assert failed is not None
    raise failed


def read_template(folder: Path, defaults: Mapping[str, str] | None = None) -> FolderTemplate | None:
    """The folder's own template; None where it has none.

    Args:
        folder: the model's.
        defaults: special tokens by role that the family's tokenizer has by itself.

    Raises:
        CheckpointError: a file is damaged.
    """
    templates = _from_files(folder) or _from_json(folder)
    if not templates:
        return None
    return FolderTemplate(templates=templates, variables={**(defaults or {}), **_special_tokens(folder)})


def _from_files(folder: Path) -> dict[str, str]:
    templates = {}
    if inside(folder, FILE).is_file():
        templates[DEFAULT] = _text(inside(folder, FILE))
    named = inside(folder, NAMED)
    if named.is_dir():
        for path in sorted(named.glob("*.jinja")):
            templates[path.stem] = _text(inside(named, path.name))
    return templates


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} should be a chat template in UTF-8: {error}; download it again") from error


def _from_json(folder: Path) -> dict[str, str]:
    for name in (CONFIG, LEGACY):
        found = optional_json(folder, name).get("chat_template")
        if found is None:
            continue
        named = found if isinstance(found, list) else [{"name": DEFAULT, "template": found}]
        if isinstance(found, Mapping):
            named = [{"name": key, "template": value} for key, value in found.items()]
        if not all(isinstance(t, Mapping) and {type(t.get("name")), type(t.get("template"))} == {str} for t in named):
            raise CheckpointError(
                f"chat_template in {folder / name} should be a text, or a list of name and template; download it again"
            )
        return {entry["name"]: entry["template"] for entry in named}
    return {}


def _special_tokens(folder: Path) -> dict[str, Any]:
    """The folder's special tokens by role, as templates name them."""
    config = optional_json(folder, CONFIG)
    sources = [config]
    # Saves that list their tokens in the config do not read the older file.
    if "added_tokens_decoder" not in config and inside(folder, "special_tokens_map.json").is_file():
        sources.append(read_json(folder, "special_tokens_map.json"))
    found: dict[str, Any] = {}
    for values in sources:
        roles = {role: _surface(values[role]) for role in ROLES if values.get(role)}
        found |= {role: text for role, text in roles.items() if text}
        if values.get(EXTRA):
            found[EXTRA] = [text for token in values[EXTRA] if (text := _surface(token))]
    return found


def _surface(token: Any) -> str | None:
    text = token.get("content") if isinstance(token, Mapping) else token
    return text if isinstance(text, str) else None
