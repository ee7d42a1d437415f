"""GLM-4's ``tokenizer.model``: tiktoken ranks, one ``base64 rank`` a line."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path

import tiktoken

from glm_export import families
from glm_export.errors import CheckpointError, InputError
from glm_export.tokenizers.added_tokens import (
    AddedToken,
    TokenSplitter,
    decode_around,
    read_added_tokens,
    without_own,
)
from glm_export.tokenizers.chat.templates import built_in
from glm_export.tokenizers.library import first_line, is_library_error, reading
from glm_export.tokenizers.named_roles import NamedRolesTokenizer
from glm_export.tokenizers.streams.detokenizer import AroundShown, Detokenizer
from glm_export.tokenizers.streams.runs import BytesRun
from glm_export.tokenizers.valid_text import require_valid_text

PREFIX = ("[gMASK]", "<sop>")
DEFAULT_ROLES = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
"""What the publisher's tokenizer has where the folder names nothing."""


def read_ranks(path: Path) -> dict[bytes, int]:
    """Token bytes to rank.

    Raises:
        CheckpointError: a line is not ``base64 rank``.
    """
    ranks: dict[bytes, int] = {}
    try:
        for line in path.read_text(encoding="ascii").splitlines():
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
    except (ValueError, binascii.Error) as error:
        raise CheckpointError(f"{path} should hold lines of 'base64 rank': {error}; download it again") from error
    return ranks


class TiktokenTokenizer(NamedRolesTokenizer):
    """Special tokens are recognised inside text, as in the official code.

    ``added``: tokens of a fine-tuned model beside the family's.
    """

    def __init__(self, path: Path, family: str) -> None:
        module = families.load(family)
        ranks = read_ranks(path)
        self.special = {token: len(ranks) + index for index, token in enumerate(module.SPECIAL_TOKENS)}
        self._stop_tokens: tuple[str, ...] = module.STOP_TOKENS
        with reading(path, "tokenizer of tiktoken"):
            self._encoding = tiktoken.Encoding(
                "glm4", pat_str=module.SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens=self.special
            )
        self.added = without_own(read_added_tokens(path.parent), self.special, self._surface, path.parent)
        own = [AddedToken(text=text, index=index, special=True) for text, index in self.special.items()]
        self._splitter = TokenSplitter((*own, *self.added))
        self._hidden = {token.index for token in (*own, *self.added) if token.special}
        super().__init__(path.parent, family, built_in(family, module.CHAT), DEFAULT_ROLES)
        self._shown = {token.index: token.text for token in self.added if not token.special}

    def _surface(self, index: int) -> str | None:
        try:
            return self._encoding.decode_single_token_bytes(index).decode(errors="replace")
        except (KeyError, OverflowError):
            return None

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """End of text, and the roles that end a reply."""
        return tuple(self.special[token] for token in self._stop_tokens)

    def encode(self, text: str) -> list[int]:
        """``[gMASK] <sop>`` and the text."""
        return [*(self.special[token] for token in PREFIX), *self.encode_plain(text)]

    def encode_plain(self, text: str) -> list[int]:
        """Ids of the text.

        Raises:
            InputError: the text is no Unicode, or has a run of blanks that is too long to be matched.
        """
        return self._splitter.encode(require_valid_text(text), self._encode_part)

    def _encode_part(self, text: str) -> list[int]:
        try:
            return self._encoding.encode_ordinary(text)
        except BaseException as error:
            # Its expressions go back through a run of blanks one by one, on a stack that ends. Other releases
            # panic there. What names no byte of the text is a hole in the ranks.
            if not is_library_error(error):
                raise
            raise InputError(
                f"tiktoken cannot split this text of {len(text)} characters ({first_line(error)}); it has a run "
                "of blanks that is too long, shorten it, or tokenizer.model lacks a byte"
            ) from error

    def decode(self, ids: list[int]) -> str:
        """Text of the ids; special tokens and the padded tail of the vocabulary have none."""
        return decode_around(ids, self._hidden, self._shown, self._decode_ranks)

    def _decode_ranks(self, ids: list[int]) -> str:
        return self._encoding.decode([i for i in ids if 0 <= i < self._encoding.n_vocab], errors="replace")

    def surface(self, ids: Sequence[int]) -> str:
        """The text with its special tokens."""
        return decode_around(ids, frozenset(), self._shown, self._decode_ranks)

    def detokenizer(self, *, names: bool = False) -> Detokenizer:
        """Text of ids while they are written, with special tokens or without."""
        hidden = frozenset[int]() if names else self._hidden
        return Detokenizer(AroundShown(lambda: BytesRun(self._bytes_of), hidden, self._shown))

    def _bytes_of(self, index: int) -> bytes | None:
        return self._encoding.decode_single_token_bytes(index) if 0 <= index < self._encoding.n_vocab else None
