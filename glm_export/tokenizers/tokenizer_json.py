"""``tokenizer.json``, as native GLM-4, GLM-Edge and GLM-4-0414 ship it; chats through the folder's own template."""

from __future__ import annotations

import json
import logging
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import tokenizers
from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from glm_export.errors import CheckpointError, InputError
from glm_export.model_folder import inside, read_json
from glm_export.tokenizers.added_tokens import read_added_tokens
from glm_export.tokenizers.chat import Message, check_roles, role_lines_prompt
from glm_export.tokenizers.valid_text import require_valid_text

logger = logging.getLogger(__name__)

PREFIX_TEXT = "[gMASK]<sop>"
# A template computes with whatever it is given, so it can fail in any of Python's ways.
BROKEN = (TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
STOP_TOKENS = ("<|endoftext|>", "<|user|>", "<|observation|>")


class JsonTokenizer:
    """Special tokens are recognised inside text; the prefix is what the file's post-processor adds."""

    def __init__(self, folder: Path) -> None:
        path = inside(folder, "tokenizer.json")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f"{path} is no tokenizer.json: {error}; download it again") from error
        # A file saved after training keeps the trainer's settings: prompts would be cut, or filled up.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._add_missing(folder)
        self._template = _chat_template(folder)

    def _add_missing(self, folder: Path) -> None:
        """Tokens that ``tokenizer_config.json`` adds to the file's; the file numbers them, as in transformers."""
        tokens = read_added_tokens(folder, legacy=False)
        self._tokenizer.add_tokens([token.for_library(normalized=token.normalized) for token in tokens])
        for token in tokens:
            found = self._tokenizer.token_to_id(token.text)
            if found != token.index:
                logger.warning(
                    "%s numbers %s %d in tokenizer_config.json and %s in tokenizer.json; the latter counts, as in "
                    "transformers",
                    folder,
                    token.text,
                    token.index,
                    found,
                )

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Those of GLM-4's stop tokens this file knows."""
        ids = (self._tokenizer.token_to_id(token) for token in STOP_TOKENS)
        return tuple(i for i in ids if i is not None)

    def encode(self, text: str) -> list[int]:
        """The text with what the post-processor adds."""
        ids: list[int] = self._tokenizer.encode(require_valid_text(text)).ids
        return ids

    def encode_plain(self, text: str) -> list[int]:
        """Ids of the text alone."""
        ids: list[int] = self._tokenizer.encode(require_valid_text(text), add_special_tokens=False).ids
        return ids

    def decode(self, ids: list[int]) -> str:
        """Text of the ids, special tokens left out."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def chat(self, messages: list[Message]) -> list[int]:
        """The folder's chat template, or GLM-4's prompt where there is none."""
        if self._template is None:
            return self.encode_plain(PREFIX_TEXT + role_lines_prompt(messages))
        check_roles(messages, ("system", "user", "assistant", "observation", "tool"))
        return self.encode_plain(render_template(self._template, messages))


def _chat_template(folder: Path) -> str | None:
    path = inside(folder, "chat_template.jinja")
    if path.is_file():
        return path.read_text(encoding="utf-8")
    if not inside(folder, "tokenizer_config.json").is_file():
        return None
    template = read_json(folder, "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):
        template = next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    return template


def render_template(template: str, messages: list[Message]) -> str:
    """Render a Jinja chat template in the sandbox transformers uses, with the same helpers.

    A template is data of the checkpoint: the sandbox gives it no attribute, file or import of Python's.

    Raises:
        InputError: the template refuses the conversation or is broken.
    """

    def refuse(message: str) -> NoReturn:
        raise TemplateError(message)

    def to_json(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda pattern: datetime.now().astimezone().strftime(pattern)
    try:
        return environment.from_string(template).render(messages=messages, add_generation_prompt=True)
    except BROKEN as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"the checkpoint's chat template cannot render this conversation: {reason}") from error
