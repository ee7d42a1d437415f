"""ChatGLM2 and ChatGLM3: SentencePiece, with special tokens numbered after the pieces."""

from __future__ import annotations

from pathlib import Path

import sentencepiece

from glm_export import families
from glm_export.errors import CheckpointError
from glm_export.tokenizers.chat import Message, check_roles, rounds_prompt
from glm_export.tokenizers.valid_text import require_valid_text

PREFIX = ("[gMASK]", "sop")


class SentencePieceTokenizer:
    """Reads ``tokenizer.model``. Special tokens are never recognised inside text, as in the official code."""

    def __init__(self, path: Path, family: str) -> None:
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise CheckpointError(f"{path} is no SentencePiece model: {error}; download it again") from error
        module = families.load(family)
        self._by_role = module.CHAT == "role_parts"
        first = self._pieces.vocab_size()
        self.special = {token: first + index for index, token in enumerate(module.SPECIAL_TOKENS)}
        self._stop_tokens: tuple[str, ...] = getattr(module, "STOP_TOKENS", ())

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The SentencePiece end of text, and the roles that end a reply."""
        return (self._pieces.eos_id(), *(self.special[token] for token in self._stop_tokens))

    def encode(self, text: str) -> list[int]:
        """``[gMASK] sop`` and the text."""
        return [*self._prefix, *self.encode_plain(text)]

    @property
    def _prefix(self) -> list[int]:
        return [self.special[token] for token in PREFIX]

    def encode_plain(self, text: str) -> list[int]:
        """Ids of the text, with SentencePiece's dummy prefix."""
        ids: list[int] = self._pieces.encode(require_valid_text(text))
        return ids

    def decode(self, ids: list[int]) -> str:
        """Text of the ids; special tokens and the padded tail of the vocabulary have none."""
        text: str = self._pieces.decode([i for i in ids if 0 <= i < self._pieces.vocab_size()])
        return text

    def chat(self, messages: list[Message]) -> list[int]:
        """ChatGLM2: one text of rounds. ChatGLM3: each part encoded alone, so each has its own dummy prefix."""
        if not self._by_role:
            return self.encode(rounds_prompt(messages))
        check_roles(messages)
        ids = self._prefix
        for message in messages:
            ids += [
                self.special[f"<|{message['role']}|>"],
                *self.encode_plain("\n"),
                *self.encode_plain(message["content"]),
            ]
        return [*ids, self.special["<|assistant|>"]]
