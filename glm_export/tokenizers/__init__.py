"""Text to ids and back, one reader per kind of file, all with the same few methods.

Only data files are read: ``tokenizer.model``, ``tokenizer.json``, ``tokenizer_config.json``, ``chat_template.jinja``;
for the two oldest families ``ice_text.model``, ``cog-pretrain.model``, ``vocab.json`` and ``merges.txt``,
``vocab.txt``, ``added_tokens.json``, ``special_tokens_map.json``. The publisher's Python is never run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from glm_export import families
from glm_export.errors import CheckpointError
from glm_export.model_folder import inside
from glm_export.spec.config import GlmConfig
from glm_export.tokenizers.chat import Message
from glm_export.tokenizers.chat.messages import Tools
from glm_export.tokenizers.chat.prompt import Options
from glm_export.tokenizers.chat.replies import THINK
from glm_export.tokenizers.library import reading
from glm_export.tokenizers.streams import Detokenizer, ReplyStream

INFILLING_FILES = ("cog-pretrain.model", "vocab.json", "vocab.txt")
FILE_OF = {
    "sentencepiece": "tokenizer.model", "tiktoken": "tokenizer.model", "tokenizer_json": "tokenizer.json",
    "ice_text": "ice_text.model",
}  # fmt: skip
LONGEST_TAG = 16
"""Ids that ``<think>`` and blanks behind it take at most."""
# Only of these families does the publisher also release tokenizer.json.
JSON_INSTEAD = ("sentencepiece", "tiktoken")


class Tokenizer(Protocol):
    """What every reader offers."""

    @property
    def special(self) -> Mapping[str, int]:
        """Special tokens by the names that templates write."""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end a reply, beside those in the config."""

    def encode(self, text: str) -> list[int]:
        """Ids of a prompt, with what the family was trained to see around it (``[gMASK] sop``)."""

    def encode_plain(self, text: str) -> list[int]:
        """Ids of the text alone."""

    def decode(self, ids: list[int]) -> str:
        """Text of generated ids; special tokens are left out."""

    def chat(
        self,
        messages: list[Message],
        *,
        tools: Tools | None = None,
        documents: Tools | None = None,
        options: Options | None = None,
    ) -> list[int]:
        """Ids of a conversation, ready for the model's next reply.

        The folder's own chat template counts where it has one, with the ids that transformers gives.

        Args:
            messages: the turns.
            tools: functions the model may call, as the OpenAI API has them.
            documents: objects with title and text, for templates that read them.
            options: what else the template reads, by name: ``enable_thinking`` of GLM-4.5.

        Raises:
            InputError: the prompt cannot express the conversation.
        """

    def parse_reply(
        self, reply: str | Sequence[int], tools: Tools | None = None, *, thinking: bool | None = None
    ) -> Message:
        """A reply as the assistant's message: text, thoughts, tool calls.

        Args:
            reply: its ids, or what :meth:`decode` made of them; ids say more where calls stand in several turns.
            tools: those the model was given.
            thinking: whether the prompt ended inside a thought (:func:`ends_in_thought`). None: it did where the reply
                ends one.
        """

    def reply_stream(self, tools: Tools | None = None, *, thinking: bool = False) -> ReplyStream:
        """What a reply says while it is written, from text or from ids.

        Args:
            tools: those the model was given; an empty list where there are none.
            thinking: whether the prompt ended inside a thought (:func:`ends_in_thought`).
        """

    def detokenizer(self, *, names: bool = False) -> Detokenizer:
        """Ids to text while they are written.

        Args:
            names: with the special tokens that :meth:`parse_reply` sees, where their names say something. Else the text
                is that of :meth:`decode`.
        """


def has_tokenizer(folder: Path, config: GlmConfig) -> bool:
    """Whether the folder holds a file the family's tokenizer is read from."""
    kind = families.load(config.family).TOKENIZER
    names = INFILLING_FILES if kind == "infilling" else (FILE_OF[kind],)
    if kind in JSON_INSTEAD:
        names = (*names, FILE_OF["tokenizer_json"])
    return any(inside(folder, name).is_file() for name in names)


def load_tokenizer(folder: Path, config: GlmConfig) -> Tokenizer:
    """The tokenizer of a checkpoint or an exported folder.

    Raises:
        CheckpointError: its file is missing or damaged.
    """
    with reading(folder, "folder of a sound tokenizer"):
        return _load(folder, config)


def _load(folder: Path, config: GlmConfig) -> Tokenizer:
    kind = families.load(config.family).TOKENIZER
    if kind == "infilling":
        from glm_export.tokenizers.infilling import load_infilling_tokenizer

        return load_infilling_tokenizer(folder)
    if (
        kind in JSON_INSTEAD
        and not inside(folder, FILE_OF[kind]).is_file()
        and inside(folder, FILE_OF["tokenizer_json"]).is_file()
    ):
        kind = "tokenizer_json"
    path = inside(folder, FILE_OF[kind])
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no {path.name}; family {config.family} reads its tokenizer from it, copy it in"
        )
    if kind == "sentencepiece":
        from glm_export.tokenizers.sentencepiece import SentencePieceTokenizer

        return SentencePieceTokenizer(path, config.family)
    if kind == "ice_text":
        from glm_export.tokenizers.ice_text import IceTextTokenizer

        return IceTextTokenizer(path)
    if kind == "tiktoken":
        from glm_export.tokenizers.tiktoken import TiktokenTokenizer

        return TiktokenTokenizer(path, config.family)
    from glm_export.tokenizers.tokenizer_json import JsonTokenizer

    return JsonTokenizer(folder, config.family)


def ends_in_thought(tokenizer: Tokenizer, prompt: Sequence[int]) -> bool:
    """Whether what follows a prompt is thought, as where a template ends in ``<think>`` (GLM-Z1).

    Args:
        tokenizer: the prompt's.
        prompt: its ids.
    """
    detokenizer = tokenizer.detokenizer(names=True)
    end = detokenizer.feed(prompt[-LONGEST_TAG:]) + detokenizer.finish()
    return end.rstrip().endswith(THINK)


def stop_ids(config: GlmConfig, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Every id that ends a reply: the config's and the prompt format's, ascending."""
    return tuple(sorted({*config.eos_token_ids, *tokenizer.stop_ids}))
