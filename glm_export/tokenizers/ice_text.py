"""ChatGLM-6B: SentencePiece (``ice_text.model``) that numbers its own special tokens.

Newlines, tabs and runs of blanks are tokens of their own.

Source: ``tokenization_chatglm.py`` of THUDM/chatglm-6b (v1.1).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from glm_export.errors import CheckpointError
from glm_export.tokenizers.added_tokens import AddedToken, decode_around, read_added_tokens, without_own
from glm_export.tokenizers.chat import Message
from glm_export.tokenizers.chat.folder_template import read_template
from glm_export.tokenizers.chat.messages import Tools
from glm_export.tokenizers.chat.prompt import Options
from glm_export.tokenizers.chat.replies import parse_reply
from glm_export.tokenizers.chat.rounds import counted_rounds_prompt
from glm_export.tokenizers.marks import (
    CLEAN_UP,
    Mark,
    MarkSplitter,
    clean_up,
    load_sentencepiece,
    optional_json,
    read_mark,
    read_roles,
)
from glm_export.tokenizers.streams import Detokenizer, ReplyStream
from glm_export.tokenizers.streams.detokenizer import AroundShown
from glm_export.tokenizers.streams.filters import ReplaceFilter, TagFilter, TextFilter
from glm_export.tokenizers.streams.runs import PiecesRun, PieceTexts
from glm_export.tokenizers.valid_text import require_valid_text

ICE_ROLES = {
    "bos_token": "<sop>", "eos_token": "<eop>", "mask_token": "[MASK]", "pad_token": "<pad>", "unk_token": "<unk>",
}  # fmt: skip
MASKS = ("[MASK]", "[sMASK]", "[gMASK]")
NEWLINE, TAB = "<n>", "<|tab|>"
BLANKS = re.compile(" {2,80}")
BLANK_TOKEN = re.compile(r"<\|blank_([2-9]|[1-7]\d|80)\|>")
WHITESPACE = {NEWLINE: "\n", TAB: "\t"} | {f"<|blank_{size}|>": " " * size for size in range(2, 81)}
# Options that change ids; every v1.1 release has these values.
FIXED = {"num_image_tokens": 0, "do_lower_case": False, "remove_space": False}


def protect_whitespace(text: str) -> str:
    """Write newlines, tabs and runs of 2 to 80 blanks as the tokens that keep them through normalisation."""
    text = text.replace("\n", NEWLINE).replace("\t", TAB)
    return BLANKS.sub(lambda run: f"<|blank_{len(run[0])}|>", text)


def restore_whitespace(text: str) -> str:
    """The other way round."""
    text = text.replace(NEWLINE, "\n").replace(TAB, "\t")
    return BLANK_TOKEN.sub(lambda token: " " * int(token[1]), text)


class IceTextTokenizer:
    """The text, ``[gMASK] <sop>``. Tokens with a role (``[MASK]``, ``<eop>``) are recognised inside text.

    ``[gMASK]`` and ``[sMASK]`` have no role in transformers' sense, so written in a text they are ordinary characters.
    """

    def __init__(self, path: Path) -> None:
        self._pieces = load_sentencepiece(path)
        self._path, folder = path, path.parent
        self._size: int = self._pieces.vocab_size()
        options = optional_json(folder, "tokenizer_config.json")
        for key, value in FIXED.items():
            if options.get(key, value) != value:
                raise CheckpointError(
                    f"{folder / 'tokenizer_config.json'} should have {key} {value}, as ChatGLM-6B v1.1, found "
                    f"{options[key]!r}; use the v1.1 release"
                )
        self.added = self._read_added(folder)
        numbered = {token.text: token.index for token in self.added}
        roles, extra = read_roles(folder, ICE_ROLES)
        taken = [Mark(text=token.text, lstrip=token.lstrip, rstrip=token.rstrip) for token in self.added]
        # What a folder says of an added token's blanks counts more than that it has a role.
        marks = (*roles.values(), *extra, *taken)
        self._mark_ids = {mark.text: numbered.get(mark.text, -1) for mark in marks}
        self._mark_ids |= {text: self._find(text) for text, index in self._mark_ids.items() if index < 0}
        self._splitter = MarkSplitter(marks)
        self._clean_up = bool(options.get("clean_up_tokenization_spaces", True))
        # Control pieces have no text of their own, and <unk> none that was in the prompt.
        hidden = (i for i in range(self._size) if self._pieces.is_control(i) or self._pieces.is_unknown(i))
        self.special: dict[str, int] = {self._pieces.id_to_piece(i): i for i in hidden}
        self.unknown_id: int | None = next((i for i in range(self._size) if self._pieces.is_unknown(i)), None)
        self._shown = {token.index: token.text for token in self.added if not token.special}
        self._hidden = {*self.special.values(), *self._mark_ids.values()} - set(self._shown)

        gmask = read_mark(options.get("gmask_token", "[gMASK]"), f"gmask_token in {folder / 'tokenizer_config.json'}")
        self._template = read_template(folder, ICE_ROLES)
        self.gmask_id = self._find(gmask.text)
        self.sop_id, self.eop_id = (self._mark_ids[roles[role].text] for role in ("bos_token", "eos_token"))
        self.pad_id = self._mark_ids[roles["pad_token"].text]
        self.mask_ids = {text: self.special[text] for text in MASKS if text in self.special}

    def _read_added(self, folder: Path) -> tuple[AddedToken, ...]:
        def surface(index: int) -> str | None:
            return self._pieces.id_to_piece(index) if index < self._size else None

        read = read_added_tokens(folder)
        own = {token.text: token.index for token in read if surface(token.index) == token.text}
        added = without_own(read, own, surface, folder)
        for token in added:
            if token.single_word:
                raise CheckpointError(
                    f"{folder} has {token.text} stand as a single word, which ChatGLM-6B's tokenizer does not know; "
                    "set single_word to false"
                )
        return added

    def _find(self, token: str) -> int:
        """Id of a special token; SentencePiece itself answers ``<unk>`` for what it does not know."""
        index: int = self._pieces.piece_to_id(token)
        if self._pieces.id_to_piece(index) != token:
            raise CheckpointError(
                f"{self._path} has no piece {token}, found {self._pieces.id_to_piece(index)}; take it and "
                "tokenizer_config.json from the same ChatGLM-6B release"
            )
        return index

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """``<eop>``."""
        return (self.eop_id,)

    def encode(self, text: str) -> list[int]:
        """The text, then ``[gMASK] <sop>``: what follows is the reply."""
        return [*self.encode_plain(text), self.gmask_id, self.sop_id]

    def encode_plain(self, text: str) -> list[int]:
        """Ids of the text; each part between special tokens has SentencePiece's dummy prefix."""
        ids: list[int] = []
        for place, part in enumerate(self._splitter.split(require_valid_text(text))):
            ids += [self._mark_ids[part]] if place % 2 else self._pieces.encode(protect_whitespace(part))
        return ids

    def decode(self, ids: list[int]) -> str:
        """Text of the ids; special tokens and the padded tail of the vocabulary have none."""
        text = restore_whitespace(decode_around(ids, self._hidden, self._shown, self._decode_pieces))
        return clean_up(text) if self._clean_up else text

    def _decode_pieces(self, ids: list[int]) -> str:
        text: str = self._pieces.decode([i for i in ids if 0 <= i < self._size])
        return text

    def chat(
        self,
        messages: list[Message],
        *,
        tools: Tools | None = None,
        documents: Tools | None = None,
        options: Options | None = None,
    ) -> list[int]:
        """The folder's template; or rounds counted from 0, where a first question goes in as it is."""
        if self._template is None:
            return self.encode(counted_rounds_prompt(messages, tools, documents))
        ids = self.encode_plain(self._template.render(messages, tools, documents, options))
        # Without it the model does not know where to write; [gMASK] has no name that a template could give.
        return ids if self.sop_id in ids else [*ids, self.gmask_id, self.sop_id]

    def parse_reply(
        self, reply: str | Sequence[int], tools: Tools | None = None, *, thinking: bool | None = None
    ) -> Message:
        """The reply's text."""
        text = reply if isinstance(reply, str) else self.decode(list(reply))
        return parse_reply(text, "chatglm", "rounds", tools, thinking=thinking)

    def reply_stream(self, tools: Tools | None = None, *, thinking: bool = False) -> ReplyStream:
        """As :meth:`parse_reply`, while it is written."""
        detokenizer = self.detokenizer(names=True)
        return ReplyStream("chatglm", "rounds", tools, thinking=thinking, detokenizer=detokenizer)

    def detokenizer(self, *, names: bool = False) -> Detokenizer:  # noqa: ARG002 - no name says anything in a reply
        """Text of ids while they are written, as :meth:`decode` gives it."""
        filters: list[TextFilter] = [TagFilter(WHITESPACE)]
        filters += [ReplaceFilter(spaced, tight) for spaced, tight in CLEAN_UP.items() if self._clean_up]
        return Detokenizer(AroundShown(lambda: PiecesRun(self._texts), self._hidden, self._shown), filters)

    @cached_property
    def _texts(self) -> PieceTexts:
        return PieceTexts(self._pieces)
