"""ChatGLM2 and ChatGLM3: SentencePiece, with special tokens numbered after the pieces."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path

import sentencepiece

from glm_export import families
from glm_export.tokenizers.added_tokens import (
    AddedToken,
    TokenSplitter,
    decode_around,
    read_added_tokens,
    without_own,
)
from glm_export.tokenizers.chat import Message
from glm_export.tokenizers.chat.folder_template import FolderTemplate, read_template
from glm_export.tokenizers.chat.messages import Tools
from glm_export.tokenizers.chat.prompt import Options
from glm_export.tokenizers.chat.replies import parse_reply
from glm_export.tokenizers.chat.role_parts import role_parts
from glm_export.tokenizers.chat.rounds import rounds_prompt
from glm_export.tokenizers.chat.templates import GUARD, WRAPPED
from glm_export.tokenizers.library import reading
from glm_export.tokenizers.streams import Detokenizer, ReplyStream
from glm_export.tokenizers.streams.detokenizer import AroundShown, WithNames
from glm_export.tokenizers.streams.runs import PiecesRun, PieceTexts
from glm_export.tokenizers.valid_text import require_valid_text

PREFIX = ("[gMASK]", "sop")


class SentencePieceTokenizer:
    """Reads ``tokenizer.model``. The family's tokens are never recognised inside text, as in the official code.

    ``added``: tokens of a fine-tuned model, which always are.
    """

    def __init__(self, path: Path, family: str) -> None:
        with reading(path, "SentencePiece model"):
            self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self._family, module = family, families.load(family)
        self._by_role = module.CHAT == "role_parts"
        first = self._pieces.vocab_size()
        self.special = {token: first + index for index, token in enumerate(module.SPECIAL_TOKENS)}
        self._stop_tokens: tuple[str, ...] = getattr(module, "STOP_TOKENS", ())
        listed = read_added_tokens(path.parent)
        self.added = without_own(listed, self.special, self._surface, path.parent)
        self._splitter = TokenSplitter(self.added)
        self._hidden = {token.index for token in self.added if token.special}
        self._shown = {token.index: token.text for token in self.added if not token.special}
        self.named = self.special
        if own := {token.text: token.index for token in listed if token.text in self.special}:
            self.named = own
        self._read_template(path.parent)

    def _read_template(self, folder: Path) -> None:
        """The folder's template, and which tokens are recognised in what it renders.

        ``named``: of the family's own and those with a role, those a template calls by name.
        """
        roles = {"eos_token": self._pieces.eos_id(), "unk_token": self._pieces.unk_id()}
        defaults = {role: self._pieces.id_to_piece(index) for role, index in roles.items() if index >= 0}
        template = read_template(folder, defaults | {"pad_token": defaults.get("unk_token", "")})
        if template is not None and any(
            GUARD in text and not text.startswith(WRAPPED) for text in template.templates.values()
        ):
            template = None  # ours, for other readers; what it says is built in here
        self.folder_template: FolderTemplate | None = template
        if template is None:
            return
        texts = [str(text).removeprefix(GUARD) for role, text in template.variables.items() if role.endswith("_token")]
        known = {text: self._pieces.piece_to_id(text) for text in texts if text}
        added = {token.text for token in self.added}
        with_role = {text: i for text, i in known.items() if self._surface(i) == text and text not in added}
        self.named = with_role | self.named
        wrapped = any(text.startswith(WRAPPED) for text in template.templates.values())
        names = {GUARD + text: i for text, i in (self.special | with_role).items()} if wrapped else self.named
        tokens = [AddedToken(text=text, index=index) for text, index in names.items()]
        self._named = TokenSplitter((*tokens, *self.added))

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

    def chat(
        self,
        messages: list[Message],
        *,
        tools: Tools | None = None,
        documents: Tools | None = None,
        options: Options | None = None,
    ) -> list[int]:
        """The folder's template. Else ChatGLM2: one text of rounds; ChatGLM3: each part encoded alone.

        In a template's text the family's own tokens are recognised, since it has no other way to name them. Of released
        folders, which list theirs, those that are listed are, as in transformers.
        """
        if self.folder_template is not None:
            text = require_valid_text(self.folder_template.render(messages, tools, documents, options))
            return self._named.encode(text, self._pieces.encode)
        if not self._by_role:
            return self.encode(rounds_prompt(messages, tools, documents))
        ids = self._prefix
        for role, metadata, content in role_parts(messages, tools, documents):
            ids += [self.special[f"<|{role}|>"], *self.encode_plain(f"{metadata}\n"), *self.encode_plain(content)]
        return [*ids, self.special["<|assistant|>"]]

    def parse_reply(
        self, reply: str | Sequence[int], tools: Tools | None = None, *, thinking: bool | None = None
    ) -> Message:
        """Text, and for ChatGLM3 calls of tools."""
        text = reply if isinstance(reply, str) else self._decode_with_names(list(reply))
        return parse_reply(text, self._family, families.load(self._family).CHAT, tools, thinking=thinking)

    def reply_stream(self, tools: Tools | None = None, *, thinking: bool = False) -> ReplyStream:
        """As :meth:`parse_reply`, while it is written."""
        detokenizer = self.detokenizer(names=True)
        return ReplyStream(
            self._family, families.load(self._family).CHAT, tools, thinking=thinking, detokenizer=detokenizer
        )

    def detokenizer(self, *, names: bool = False) -> Detokenizer:
        """Text of ids while they are written, with the family's own tokens by their names or without."""
        stream = partial(AroundShown, lambda: PiecesRun(self._texts), self._hidden, self._shown)
        own = {index: text for text, index in self.special.items()}
        return Detokenizer(WithNames(stream, own) if names else stream())

    @cached_property
    def _texts(self) -> PieceTexts:
        return PieceTexts(self._pieces)

    def _decode_with_names(self, ids: list[int]) -> str:
        """Text with the family's own tokens by their names."""
        names = {index: text for text, index in self.special.items()}
        parts, run = "", list[int]()
        for index in ids:
            if index in names:
                parts += self.decode(run) + names[index]
                run = []
            else:
                run.append(index)
        return parts + self.decode(run)
