"""The 2022 GLM: one set of rules for special tokens over three kinds of vocabulary.

GLM-large-chinese and GLM-10B-chinese ship SentencePiece (``cog-pretrain.model``), GLM-2B and GLM-10B GPT-2's byte
pairs (``vocab.json``, ``merges.txt``), GLM-515M and GLM-large BERT's word pieces (``vocab.txt``). Special tokens are
numbered in ``added_tokens.json`` and get their roles in ``special_tokens_map.json`` or ``tokenizer_config.json``.

Sources: ``tokenization_glm.py`` of THUDM/glm-large-chinese, ``PreTrainedTokenizer`` of transformers 4.30 (what splits
text at special tokens, and what joins decoded parts), ``data_utils/tokenization.py`` of THUDM/GLM (sentence ends).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, Protocol

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from glm_export.errors import CheckpointError, InputError
from glm_export.model_folder import inside, read_json
from glm_export.tokenizers.chat import Message
from glm_export.tokenizers.chat.messages import Tools
from glm_export.tokenizers.chat.replies import parse_reply
from glm_export.tokenizers.library import reading
from glm_export.tokenizers.marks import (
    CLEAN_UP,
    Mark,
    MarkSplitter,
    clean_up,
    load_sentencepiece,
    optional_json,
    read_added,
    read_roles,
)
from glm_export.tokenizers.streams import Detokenizer, ReplyStream
from glm_export.tokenizers.streams.detokenizer import AroundShown
from glm_export.tokenizers.streams.filters import ReplaceFilter
from glm_export.tokenizers.streams.runs import BytesRun, PiecesRun, PieceTexts, Run, WordPiecesRun, bytes_of_letters
from glm_export.tokenizers.valid_text import require_valid_text

SOP, EOP = "<|startofpiece|>", "<|endofpiece|>"
MASKS = ("[MASK]", "[sMASK]", "[gMASK]")
BLOCK_MASK = "dBLOCK"
SENTENCE_ENDS = (".", "?", "!", ";", ":", "。", "？", "！", "；", "…", "\n")
# Roles of a folder that assigns none: the publisher's own, and for BERT those of transformers' BertTokenizer.
GLM_ROLES = {
    "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "cls_token": "[CLS]", "mask_token": "[MASK]",
    "unk_token": "[UNK]",
}  # fmt: skip
BERT_ROLES = {
    "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]", "unk_token": "[UNK]",
}  # fmt: skip
WORD_LIMIT = 100
"""Characters of a word beyond which BERT calls it unknown."""


# -- vocabularies ------------------------------------------------------------------------------------------------------


class Pieces(Protocol):
    """A vocabulary without its special tokens: ids are ``0 .. size - 1``."""

    size: int

    def encode(self, text: str) -> list[int]:
        """Ids of text that holds no special token."""

    def decode(self, ids: list[int]) -> str:
        """Text of ids below ``size``."""

    def surface(self, index: int) -> str:
        """The piece as the vocabulary writes it."""

    def find(self, token: str) -> int | None:
        """Id of exactly this piece."""

    def unknown_id(self) -> int | None:
        """Id of what the vocabulary cannot write, where it has one of its own."""

    def run(self) -> Run:
        """:meth:`decode` while ids come."""


class SentencePieces:
    """``cog-pretrain.model``."""

    def __init__(self, path: Path) -> None:
        self._library = load_sentencepiece(path)
        self.size: int = self._library.vocab_size()

    def encode(self, text: str) -> list[int]:
        """Ids by way of piece texts, as the publisher looks them up."""
        return [self._library.piece_to_id(piece) for piece in self._library.encode(text, out_type=str)]

    def decode(self, ids: list[int]) -> str:
        """Text, without the dummy prefix."""
        text: str = self._library.decode(ids)
        return text

    def surface(self, index: int) -> str:
        """The piece, with ``▁`` for a blank."""
        piece: str = self._library.id_to_piece(index)
        return piece

    def find(self, token: str) -> int | None:
        """Id of the piece; SentencePiece itself answers ``<unk>`` for every other string."""
        index: int = self._library.piece_to_id(token)
        return index if self.surface(index) == token else None

    def unknown_id(self) -> int | None:
        """``<unk>``."""
        index: int = self._library.unk_id()
        return index

    def run(self) -> Run:
        """Of pieces."""
        return PiecesRun(self._texts)

    @cached_property
    def _texts(self) -> PieceTexts:
        return PieceTexts(self._library)


class BytePairs:
    """GPT-2's ``vocab.json`` and ``merges.txt``; a piece is written in GPT-2's printable stand-ins for bytes."""

    def __init__(self, folder: Path) -> None:
        path, merges = inside(folder, "vocab.json"), inside(folder, "merges.txt")
        self._ids: dict[str, int] = read_json(folder, path.name)
        self.size = len(self._ids)
        numbers = [index for index in self._ids.values() if isinstance(index, int)]
        if sorted(numbers) != list(range(self.size)):
            raise CheckpointError(f"{path} should number its {self.size} pieces from 0 without gaps; download it again")
        if not merges.is_file():
            raise CheckpointError(f"{folder} has vocab.json but no merges.txt; a byte-pair vocabulary needs both")
        # A missing byte would vanish from the text without a word.
        missing = set(pre_tokenizers.ByteLevel.alphabet()) - set(self._ids)
        if missing:
            raise CheckpointError(f"{path} lacks {len(missing)} of the 256 single bytes; download it again")
        with reading(merges, f"list of pairs of {path.name}"):
            self._library = tokenizers.Tokenizer(models.BPE.from_file(str(path), str(merges)))
        self._library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._decoder = decoders.ByteLevel()
        self._surfaces = {index: piece for piece, index in self._ids.items()}

    def encode(self, text: str) -> list[int]:
        """Ids; a blank belongs to the word after it."""
        ids: list[int] = self._library.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: list[int]) -> str:
        """Text; bytes that are not UTF-8 become U+FFFD."""
        text: str = self._decoder.decode([self._surfaces[i] for i in ids])
        return text

    def surface(self, index: int) -> str:
        """The piece in stand-ins: ``Ġ`` is a blank."""
        return self._surfaces[index]

    def find(self, token: str) -> int | None:
        """Id of the piece."""
        return self._ids.get(token)

    def unknown_id(self) -> int | None:
        """None: bytes write everything."""
        return None

    def run(self) -> Run:
        """Of bytes."""
        return BytesRun(lambda index: bytes_of_letters(self._surfaces[index]) if index in self._surfaces else None)


class WordPieces:
    """BERT's ``vocab.txt``, one piece a line."""

    def __init__(self, folder: Path) -> None:
        path = inside(folder, "vocab.txt")
        try:
            # Not splitlines: the vocabulary has pieces that Unicode counts as line ends.
            with path.open(encoding="utf-8") as file:
                self._surfaces = [line.rstrip("\n") for line in file]
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} should hold one piece a line: {error}; download it again") from error
        self._ids = {piece: index for index, piece in enumerate(self._surfaces)}
        self.size = len(self._surfaces)
        if "[UNK]" not in self._ids:
            raise CheckpointError(f"{path} has no [UNK] among its {self.size} pieces; it is no BERT vocabulary")
        options = optional_json(folder, "tokenizer_config.json")
        self._library = tokenizers.Tokenizer(
            models.WordPiece(self._ids, unk_token="[UNK]", max_input_chars_per_word=WORD_LIMIT)
        )
        self._library.normalizer = normalizers.BertNormalizer(
            lowercase=bool(options.get("do_lower_case", True)),
            handle_chinese_chars=bool(options.get("tokenize_chinese_chars", True)),
            strip_accents=options.get("strip_accents"),
        )
        self._library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()

    def encode(self, text: str) -> list[int]:
        """Ids of the words' pieces."""
        ids: list[int] = self._library.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: list[int]) -> str:
        """Words with one blank between; which blanks the text had is lost."""
        return " ".join(self._surfaces[i] for i in ids).replace(" ##", "").strip()

    def surface(self, index: int) -> str:
        """The piece; ``##`` begins one inside a word."""
        return self._surfaces[index]

    def find(self, token: str) -> int | None:
        """Id of the piece."""
        return self._ids.get(token)

    def unknown_id(self) -> int | None:
        """``[UNK]``."""
        return self._ids["[UNK]"]

    def run(self) -> Run:
        """Of words."""
        return WordPiecesRun(self.surface, self.size)


# -- the tokenizer -----------------------------------------------------------------------------------------------------


class InfillingTokenizer:
    """``[CLS]``, the text, the end token. Special tokens are recognised inside text, as in the official code."""

    special: dict[str, int]
    mask_ids: dict[str, int]

    def __init__(self, pieces: Pieces, folder: Path, *, roles: Mapping[str, str], end_role: str) -> None:
        """Put the folder's special tokens on a vocabulary; see :func:`load_infilling_tokenizer`."""
        self._pieces, self._folder = pieces, folder
        named, extra = read_roles(folder, roles)
        added = read_added(folder, pieces.size, pieces.surface)
        extra = extra or [Mark(text=text) for text in (SOP, EOP, *MASKS) if text in added]
        self._marks = {text: mark for text, (_, mark, _) in added.items()}
        self._marks |= {mark.text: mark for mark in (*named.values(), *extra)}
        self._ids = {text: index for text, (index, _, _) in added.items()}
        unknown = named["unk_token"].text
        # SentencePiece has its own <unk>, so [UNK] needs no number there; and bytes leave nothing unknown.
        if unknown not in self._ids and pieces.find(unknown) is None:
            substitute = pieces.unknown_id()
            if substitute is None:
                named.pop("unk_token")
                self._marks.pop(unknown, None)
            else:
                self._ids[unknown] = substitute
        for text in self._marks:
            self._ids[text] = self._known(text, self._ids.get(text, pieces.find(text)))
        self.special = {text: i for text, i in self._ids.items() if text in added or pieces.find(text) is not None}
        hidden = {mark.text for mark in (*named.values(), *extra)} | {t for t, entry in added.items() if entry[2]}
        self._hidden = {self._ids[text] for text in hidden}
        self._shown = {index: text for text, (index, _, _) in added.items() if index not in self._hidden}
        self._splitter = MarkSplitter(self._marks.values())
        self._clean_up = bool(optional_json(folder, "tokenizer_config.json").get("clean_up_tokenization_spaces", True))

        self.unknown_id = pieces.unknown_id() if pieces.unknown_id() is not None else self._ids.get(unknown)
        self.cls_id = self._ids[named["cls_token"].text]
        self.eos_id = self._ids[named[end_role].text]
        self.pad_id = self._ids[named["pad_token"].text]
        self.sop_id, self.eop_id = self._known(SOP, self._ids.get(SOP)), self._known(EOP, self._ids.get(EOP))
        self.mask_ids = {text: self._ids[text] for text in MASKS if text in self._ids}

    def _known(self, text: str, index: int | None) -> int:
        if index is None:
            raise CheckpointError(
                f"{self._folder} has no number for the special token {text}; added_tokens.json of the same model "
                "gives it, copy it in"
            )
        return index

    @property
    def dblock_id(self) -> int | None:
        """What pretraining hides single tokens of a block behind; None in BERT's vocabulary.

        No released file names it. Where documents and sentences have masks of their own it comes right after them:
        50010 in Chinese, 50265 in English.
        """
        if BLOCK_MASK in self._ids:
            return self._ids[BLOCK_MASK]
        if set(self.mask_ids) != set(MASKS):
            return None
        index = max(self.mask_ids.values()) + 1
        return None if index in self._ids.values() else index

    @cached_property
    def sentence_end_ids(self) -> frozenset[int]:
        """Ids whose piece, as the vocabulary writes it, has a sentence's end in it.

        As in the official objective, GPT-2's stand-ins are not translated: its newline ``Ċ`` ends no sentence.
        """
        surfaces = ((index, self._pieces.surface(index)) for index in range(self._pieces.size))
        return frozenset(index for index, text in surfaces if any(end in text for end in SENTENCE_ENDS))

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The end of a filled blank, and the end of text."""
        return self.eop_id, self.eos_id

    def encode(self, text: str) -> list[int]:
        """``[CLS]``, the text, ``<|endoftext|>`` (``[SEP]`` in BERT's vocabulary)."""
        return [self.cls_id, *self.encode_plain(text), self.eos_id]

    def generation_ids(self, text: str) -> list[int]:
        """Ids from which the model writes on: a text without a blank gets one at its end, then the start of a piece.

        The blank is [gMASK] where the vocabulary has it (document-level generation), else [MASK].
        """
        ids = self.encode(text)
        if not set(ids) & set(self.mask_ids.values()):
            ids.insert(-1, self.mask_ids.get("[gMASK]", self.mask_ids["[MASK]"]))
        return [*ids, self.sop_id]

    def encode_plain(self, text: str) -> list[int]:
        """Ids of the text, special tokens in it recognised."""
        ids: list[int] = []
        for place, part in enumerate(self._splitter.split(require_valid_text(text))):
            ids += [self._ids[part]] if place % 2 else self._pieces.encode(part)
        return ids

    def decode(self, ids: list[int]) -> str:
        """Text of the ids; special tokens, unknown pieces and the padded tail of the vocabulary have none.

        Added tokens without a role (``[UNUSED1]``) are written out, as in the official code.
        """
        parts: list[str] = []
        run: list[int] = []
        for index in ids:
            if index in self._shown:
                parts += [self._pieces.decode(run)] * bool(run) + [self._shown[index]]
                run = []
            elif index not in self._hidden and 0 <= index < self._pieces.size:
                run.append(index)
        text = " ".join(parts + [self._pieces.decode(run)] * bool(run))
        return clean_up(text) if self._clean_up else text

    def chat(self, messages: list[Message], **_: Any) -> NoReturn:  # noqa: ARG002 - the protocol's argument
        """Refuse.

        Raises:
            InputError: always.
        """
        raise InputError(
            f"GLM (2022) was trained on no conversations; put {' or '.join(self.mask_ids)} where text is wanted "
            "and infill it"
        )

    def parse_reply(
        self, reply: str | Sequence[int], tools: Tools | None = None, *, thinking: bool | None = None
    ) -> Message:
        """What was filled in, as text."""
        text = reply if isinstance(reply, str) else self.decode(list(reply))
        return parse_reply(text, "glm_infilling", "none", tools, thinking=thinking)

    def reply_stream(self, tools: Tools | None = None, *, thinking: bool = False) -> ReplyStream:
        """As :meth:`parse_reply`, while it is written."""
        detokenizer = self.detokenizer(names=True)
        return ReplyStream("glm_infilling", "none", tools, thinking=thinking, detokenizer=detokenizer)

    def detokenizer(self, *, names: bool = False) -> Detokenizer:  # noqa: ARG002 - no name says anything in a reply
        """Text of ids while they are written, as :meth:`decode` gives it."""
        filters = [ReplaceFilter(spaced, tight) for spaced, tight in CLEAN_UP.items() if self._clean_up]
        return Detokenizer(AroundShown(self._pieces.run, self._hidden, self._shown, empty_runs=True), filters)


def load_infilling_tokenizer(folder: Path) -> InfillingTokenizer:
    """The tokenizer of a 2022 GLM, by which vocabulary file lies in the folder.

    Raises:
        CheckpointError: no vocabulary, or a damaged file.
    """
    if inside(folder, "cog-pretrain.model").is_file():
        pieces: Pieces = SentencePieces(inside(folder, "cog-pretrain.model"))
    elif inside(folder, "vocab.json").is_file():
        pieces = BytePairs(folder)
    elif inside(folder, "vocab.txt").is_file():
        return InfillingTokenizer(WordPieces(folder), folder, roles=BERT_ROLES, end_role="sep_token")
    else:
        raise CheckpointError(
            f"{folder} has no cog-pretrain.model, vocab.json or vocab.txt; family glm_infilling reads its tokenizer "
            "from one of them, copy it in"
        )
    return InfillingTokenizer(pieces, folder, roles=GLM_ROLES, end_role="eos_token")
