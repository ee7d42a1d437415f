"""``tokenizer.json``, as native GLM-4, GLM-Edge and GLM-4-0414 ship it; chats through the folder's own template."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import tokenizers

from glm_export import families
from glm_export.errors import CheckpointError
from glm_export.model_folder import inside
from glm_export.tokenizers.added_tokens import read_added_tokens
from glm_export.tokenizers.chat import Message
from glm_export.tokenizers.chat.folder_template import FolderTemplate
from glm_export.tokenizers.chat.messages import Tools
from glm_export.tokenizers.chat.prompt import ChatPrompt, Options
from glm_export.tokenizers.chat.replies import parse_reply
from glm_export.tokenizers.chat.templates import GUARD, built_in
from glm_export.tokenizers.valid_text import require_valid_text

logger = logging.getLogger(__name__)

STOP_TOKENS = ("<|endoftext|>", "<|user|>", "<|observation|>")


class JsonTokenizer:
    """Special tokens are recognised inside text; the prefix is what the file's post-processor adds."""

    def __init__(self, folder: Path, family: str) -> None:
        self._family = family
        path = inside(folder, "tokenizer.json")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f"{path} is no tokenizer.json: {error}; download it again") from error
        # A file saved after training keeps the trainer's settings: prompts would be cut, or filled up.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._add_missing(folder)
        template = built_in(family, families.load(family).CHAT)
        # A file of ours has names that no text has, one of the publisher's the names themselves.
        if self._tokenizer.token_to_id(f"{GUARD}sop") is None:
            template = template.replace(GUARD, "")
        self.built_in = template
        self._prompt = ChatPrompt.read(folder, template)

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
    def folder_template(self) -> FolderTemplate | None:
        """The folder's own chat template; None where the family's prompt counts."""
        return self._prompt.folder

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Those of GLM-4's stop tokens this file knows."""
        ids = (self._tokenizer.token_to_id(guard + token) for token in STOP_TOKENS for guard in ("", GUARD))
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

    def chat(
        self,
        messages: list[Message],
        *,
        tools: Tools | None = None,
        documents: Tools | None = None,
        options: Options | None = None,
    ) -> list[int]:
        """The folder's chat template, or the family's prompt where there is none."""
        return self.encode_plain(self._prompt.text(messages, tools, documents, options))

    def parse_reply(self, reply: str | Sequence[int], tools: Tools | None = None) -> Message:
        """Text, thoughts, and calls of tools."""
        text = reply
        if not isinstance(text, str):
            text = self._tokenizer.decode(list(reply), skip_special_tokens=False).replace(GUARD, "")
        return parse_reply(text, self._family, families.load(self._family).CHAT, tools)
