"""ChatGLM2 and ChatGLM3: SentencePiece, with special tokens numbered after the pieces."""

from __future__ import annotations

from pathlib import Path

import sentencepiece

from glm_export import families
from glm_export.errors import CheckpointError
from glm_export.tokenizers.added_tokens import TokenSplitter, decode_around, read_added_tokens, without_own
from glm_export.tokenizers.chat import Message, check_roles, rounds_prompt
from glm_export.tokenizers.valid_text import require_valid_text

PREFIX = ("[gMASK]", "sop")


class SentencePieceTokenizer:
    """Reads ``tokenizer.model``. The family's tokens are never recognised inside text, as in the official code.

    ``added``: tokens of a fine-tuned model, which always are.
    """

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
        self.added = without_own(read_added_tokens(path.parent), self.special, self._surface, path.parent)
        self._splitter = TokenSplitter(self.added)
        self._hidden = {token.index for token in self.added if token.special}
        self._shown = {token.index: token.text for token in self.added if not token.special}

    def _surface(self, index: int) -> str | None:
        if index < self._pieces.vocab_size():
            piece: str = self._pieces.id_to_piece(index)
            return piece
        return next((token for token, i in self.special.items() if i == index), None)

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
        """Ids of the text; each part between added tokens has SentencePiece's dummy prefix."""
        return self._splitter.encode(require_valid_text(text), self._pieces.encode)

    def decode(self, ids: list[int]) -> str:
        """Text of the ids; special tokens and the padded tail of the vocabulary have none."""
        return decode_around(ids, self._hidden, self._shown, self._decode_pieces)

    def _decode_pieces(self, ids: list[int]) -> str:
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
