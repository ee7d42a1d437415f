"""A conversation as one text: by the folder's template, or by the one built in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from glm_export.errors import InputError
from glm_export.tokenizers.chat import environment
from glm_export.tokenizers.chat.folder_template import FolderTemplate, read_template
from glm_export.tokenizers.chat.messages import Tools, checked, checked_tools
from glm_export.tokenizers.chat.spelling import forms

Options = Mapping[str, Any]
"""What a template reads beside the conversation, by name: ``enable_thinking`` of GLM-4.5."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPrompt:
    """How a folder's conversations are written.

    ``folder``: its own template, which counts where there is one. ``built_in``: that of its family.
    """

    folder: FolderTemplate | None
    built_in: str

    @classmethod
    def read(cls, folder: Path, built_in: str, defaults: Mapping[str, str] | None = None) -> ChatPrompt:
        """The prompt of a folder; see :func:`~glm_export.tokenizers.chat.folder_template.read_template`."""
        own = read_template(folder, defaults)
        return cls(folder=own if own is None or set(own.templates.values()) != {built_in} else None, built_in=built_in)

    def text(
        self, messages: Any, tools: Tools | None = None, documents: Tools | None = None, options: Options | None = None
    ) -> str:
        """A conversation's text, up to where the model writes.

        Raises:
            InputError: the prompt cannot express the conversation.
        """
        if self.folder is not None:
            return self.folder.render(messages, tools, documents, options)
        return render_built_in(self.built_in, messages, tools, documents, options)


def render_built_in(
    template: str,
    messages: Any,
    tools: Tools | None = None,
    documents: Tools | None = None,
    options: Options | None = None,
) -> str:
    """A conversation's text by a template of ours; it needs nobody to watch it.

    Raises:
        InputError: the prompt cannot express the conversation.
    """
    if documents:
        raise InputError("this model's prompt has no place for documents; put them into a message")
    given = {"tools": checked_tools(tools), "documents": None, "add_generation_prompt": True}
    failed: TemplateError | None = None
    for form in forms(checked(messages)):
        try:
            return environment.render(template, {**(options or {}), **given, "messages": form})
        except TemplateError as error:
            failed = failed or error
    raise InputError(f"this model's prompt cannot express the conversation: {failed}")
