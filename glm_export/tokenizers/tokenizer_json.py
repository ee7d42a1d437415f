"""``tokenizer.json``, as native GLM-4, GLM-Edge and GLM-4-0414 ship it; chats through the folder's own template."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import tokenizers

from glm_export import families
from glm_export.model_folder import inside
from glm_export.tokenizers.added_tokens import read_added_tokens
from glm_export.tokenizers.chat.templates import GUARD, built_in
from glm_export.tokenizers.library import reading
from glm_export.tokenizers.named_roles import NamedRolesTokenizer
from glm_export.tokenizers.streams.detokenizer import AroundShown, Detokenizer
from glm_export.tokenizers.streams.filters import ReplaceFilter
from glm_export.tokenizers.streams.runs import BytesRun, FallbackRun, HeldRun, Run, bytes_of_letters, fallback_blanks
from glm_export.tokenizers.valid_text import require_valid_text

logger = logging.getLogger(__name__)

LARGEST_ID = 1 << 32
"""Ids are numbers of 32 bits in the library."""
STOP_TOKENS = ("<|endoftext|>", "<|user|>", "<|observation|>")


class JsonTokenizer(NamedRolesTokenizer):
    """Special tokens are recognised inside text; the prefix is what the file's post-processor adds."""

    def __init__(self, folder: Path, family: str) -> None:
        self._path = inside(folder, "tokenizer.json")
        with self._reading():
            self._tokenizer = tokenizers.Tokenizer.from_file(str(self._path))
        # A file saved after training keeps the trainer's settings: prompts would be cut, or filled up.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._add_missing(folder)
        template = built_in(family, families.load(family).CHAT)
        # A file of ours has names that no text has, one of the publisher's the names themselves.
        if self._tokenizer.token_to_id(f"{GUARD}sop") is None:
            template = template.replace(GUARD, "")
        super().__init__(folder, family, template)

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
    def special(self) -> dict[str, int]:
        """Those of the file, and what the folder adds to them."""
        added = self._tokenizer.get_added_tokens_decoder()
        return {token.content.replace(GUARD, ""): index for index, token in added.items() if token.special}

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Those of GLM-4's stop tokens this file knows."""
        ids = (self._tokenizer.token_to_id(guard + token) for token in STOP_TOKENS for guard in ("", GUARD))
        return tuple(i for i in ids if i is not None)

    def encode(self, text: str) -> list[int]:
        """The text with what the post-processor adds.

        Raises:
            InputError: the text is no Unicode.
            CheckpointError: the file names tokens that it does not have.
        """
        return self._encoded(text, add_special_tokens=True)

    def encode_plain(self, text: str) -> list[int]:
        """Ids of the text alone. Raises as :meth:`encode`."""
        return self._encoded(text, add_special_tokens=False)

    def _encoded(self, text: str, *, add_special_tokens: bool) -> list[int]:
        valid = require_valid_text(text)
        with self._reading():
            ids: list[int] = self._tokenizer.encode(valid, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: list[int]) -> str:
        """Text of the ids, special tokens left out; ids that no vocabulary has have none."""
        return self._decoded(ids, skip_special_tokens=True)

    def surface(self, ids: Sequence[int]) -> str:
        """The text with its special tokens."""
        return self._decoded(ids, skip_special_tokens=False).replace(GUARD, "")

    def detokenizer(self, *, names: bool = False) -> Detokenizer:
        """Text of ids while they are written, with special tokens or without; held back of a decoder nobody knows."""
        added = self._tokenizer.get_added_tokens_decoder()
        hidden = frozenset(index for index, token in added.items() if token.special and not names)
        filters = [ReplaceFilter(GUARD, "")] if names else []
        return Detokenizer(AroundShown(lambda: self._run(names=names), hidden, unwritten=frozenset(added)), filters)

    def _run(self, *, names: bool) -> Run:
        state = self._tokenizer.decoder.__getstate__() if self._tokenizer.decoder is not None else b"{}"
        if json.loads(state).get("type") == "ByteLevel":
            return BytesRun(self._bytes_of)
        blanks = fallback_blanks(state)
        if blanks is not None:
            return FallbackRun(self._piece, blanks)
        return HeldRun(lambda ids: self._decoded(ids, skip_special_tokens=not names))

    def _piece(self, index: int) -> str | None:
        piece: str | None = self._tokenizer.id_to_token(index) if 0 <= index < LARGEST_ID else None
        return piece

    def _bytes_of(self, index: int) -> bytes | None:
        piece = self._piece(index)
        return None if piece is None else bytes_of_letters(piece)

    def _decoded(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        known = [i for i in ids if 0 <= i < LARGEST_ID]
        with self._reading():
            text: str = self._tokenizer.decode(known, skip_special_tokens=skip_special_tokens)
        return text

    def _reading(self) -> AbstractContextManager[None]:
        """Around every call: a file may be read, and break when it is used."""
        return reading(self._path, "tokenizer.json that works")
