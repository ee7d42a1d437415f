"""Tokenizers whose vocabulary has the roles of a chat by name (``<|user|>``), so that a prompt is a text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from glm_export import families
from glm_export.tokenizers.chat import Message
from glm_export.tokenizers.chat.folder_template import FolderTemplate
from glm_export.tokenizers.chat.messages import Tools
from glm_export.tokenizers.chat.prompt import ChatPrompt, Options
from glm_export.tokenizers.chat.replies import parse_reply
from glm_export.tokenizers.streams import Detokenizer, ReplyStream


class NamedRolesTokenizer(ABC):
    """Prompts by the folder's template or the family's, replies by the family.

    ``built_in``: the template of the family.
    """

    def __init__(
        self, folder: Path, family: str, built_in: str, roles: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self._family, self.built_in = family, built_in
        self._prompt = ChatPrompt.read(folder, built_in, dict(roles))

    @abstractmethod
    def encode_plain(self, text: str) -> list[int]:
        """Ids of the text alone."""

    @abstractmethod
    def surface(self, ids: Sequence[int]) -> str:
        """The text with its special tokens."""

    @abstractmethod
    def detokenizer(self, *, names: bool = False) -> Detokenizer:
        """Text of ids while they are written, with special tokens or without."""

    @property
    def folder_template(self) -> FolderTemplate | None:
        """The folder's own chat template; None where the family's prompt counts."""
        return self._prompt.folder

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

    def parse_reply(
        self, reply: str | Sequence[int], tools: Tools | None = None, *, thinking: bool | None = None
    ) -> Message:
        """Text, thoughts, and calls of tools."""
        text = reply if isinstance(reply, str) else self.surface(reply)
        return parse_reply(text, self._family, families.load(self._family).CHAT, tools, thinking=thinking)

    def reply_stream(self, tools: Tools | None = None, *, thinking: bool = False) -> ReplyStream:
        """As :meth:`parse_reply`, while it is written."""
        detokenizer = self.detokenizer(names=True)
        return ReplyStream(
            self._family, families.load(self._family).CHAT, tools, thinking=thinking, detokenizer=detokenizer
        )
