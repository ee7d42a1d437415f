"""One run of ids, decoded as each kind of vocabulary does it."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable
from typing import Any, Protocol

from glm_export.tokenizers.streams.filters import FilterChain, ReplaceFilter, StripFilter

REPLACEMENT = "\ufffd"
BLANK = "▁"
BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Run(Protocol):
    """Ids that are decoded together."""

    def has(self, index: int) -> bool:
        """Whether the vocabulary has this id."""

    def feed(self, index: int) -> str:
        """What is certain after one more of its ids."""

    def finish(self) -> str:
        """What was held back."""

    def bytes_of(self, index: int, *, first: bool) -> bytes | None:
        """What one of its ids adds; ``first``: where the run begins. None where that depends on others."""


def byte_letters() -> dict[int, str]:
    """The letter that stands for each byte in byte-level vocabularies.

    Bytes that print stand for themselves, the others for U+0100 and on, in their order (GPT-2).
    """
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printing]
    return {byte: chr(byte) for byte in printing} | {byte: chr(0x100 + place) for place, byte in enumerate(others)}


LETTERS = {letter: byte for byte, letter in byte_letters().items()}


def bytes_of_letters(piece: str) -> bytes:
    """The bytes of a piece of a byte-level vocabulary; one with another letter (an added token) is itself."""
    values = [LETTERS.get(letter) for letter in piece]
    return piece.encode() if None in values else bytes(value for value in values if value is not None)


class BytesRun:
    """Ids that stand for bytes of UTF-8: tiktoken, byte-level pairs.

    Args:
        bytes_of: those of an id; None where the vocabulary does not have it.
    """

    def __init__(self, bytes_of: Callable[[int], bytes | None]) -> None:
        self._bytes_of = bytes_of
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def has(self, index: int) -> bool:
        """Whether it stands for any."""
        return self._bytes_of(index) is not None

    def feed(self, index: int) -> str:
        """Whole characters."""
        return self._decoder.decode(self._bytes_of(index) or b"")

    def finish(self) -> str:
        """U+FFFD for a character that was not ended."""
        return self._decoder.decode(b"", final=True)

    def bytes_of(self, index: int, *, first: bool) -> bytes | None:  # noqa: ARG002 - the same everywhere
        """Its bytes."""
        return self._bytes_of(index)


class PieceTexts:
    """What SentencePiece writes for its ids.

    Source: ``SentencePieceProcessor::Decode`` of google/sentencepiece 0.2: a byte that is no UTF-8 becomes U+FFFD, the
    dummy prefix is dropped, and all blanks in front where the model removes extra ones.
    """

    def __init__(self, library: Any) -> None:
        self._library = library
        self.size: int = library.vocab_size()
        unknown: int = library.unk_id()
        self._unknown: str = library.decode([unknown]) if unknown >= 0 else ""
        self.drops_first_blank = self.drops_all_blanks = False
        begins = next((i for i in range(self.size) if self._surface(i).startswith(BLANK)), None)
        if begins is not None:
            self.drops_first_blank = not library.decode([begins]).startswith(" ")
            blank: int = library.piece_to_id(BLANK)
            if library.id_to_piece(blank) == BLANK:
                self.drops_all_blanks = not library.decode([blank, begins]).startswith(" ")

    def _surface(self, index: int) -> str:
        piece: str = self._library.id_to_piece(index)
        return piece

    def byte(self, index: int) -> int | None:
        """The byte that a piece stands for, where it is one."""
        return int(self._surface(index)[3:5], 16) if self._library.is_byte(index) else None

    def text(self, index: int) -> str:
        """A piece's text, ``▁`` for blanks; control pieces have none."""
        if self._library.is_control(index):
            return ""
        return self._unknown if self._library.is_unknown(index) else self._surface(index)

    def is_unknown(self, index: int) -> bool:
        """Whether it stands for what the vocabulary cannot write."""
        return bool(self._library.is_unknown(index))


class PiecesRun:
    """Ids of SentencePiece."""

    def __init__(self, pieces: PieceTexts) -> None:
        self._pieces = pieces
        self._bytes = bytearray()
        self._begun = False

    def has(self, index: int) -> bool:
        """Whether it is a piece."""
        return 0 <= index < self._pieces.size

    def feed(self, index: int) -> str:
        """Pieces, and characters whose bytes are all there."""
        byte = self._pieces.byte(index)
        if byte is not None:
            self._bytes.append(byte)
            return self._characters(ended=False)
        before = self._characters(ended=True)
        text = self._pieces.text(index)
        if not self._begun and self._pieces.drops_first_blank and text.startswith(BLANK):
            text = text[1:]
            self._begun = not self._pieces.drops_all_blanks
        self._begun = self._begun or bool(text)
        return before + text.replace(BLANK, " ")

    def finish(self) -> str:
        """U+FFFD for each byte of a character that was not ended."""
        return self._characters(ended=True)

    def bytes_of(self, index: int, *, first: bool) -> bytes | None:
        """Its byte, or its text; <unk> is none."""
        byte = self._pieces.byte(index)
        if byte is not None:
            return bytes([byte])
        text = "" if self._pieces.is_unknown(index) else self._pieces.text(index)
        drops = first and self._pieces.drops_first_blank
        return (text.removeprefix(BLANK) if drops else text).replace(BLANK, " ").encode()

    def _characters(self, *, ended: bool) -> str:
        text = ""
        while self._bytes:
            try:
                text += self._bytes.decode()
                self._bytes.clear()
            except UnicodeDecodeError as error:
                text += self._bytes[: error.start].decode()
                del self._bytes[: error.start]
                if error.reason.startswith("unexpected end") and not ended:
                    break
                text += REPLACEMENT
                del self._bytes[:1]
        self._begun = self._begun or bool(text)
        return text


class WordPiecesRun:
    """BERT's word pieces: a blank between words, none before ``##``."""

    def __init__(self, surface: Callable[[int], str], size: int) -> None:
        self._surface, self._size = surface, size
        self._filters = FilterChain([ReplaceFilter(" ##", ""), StripFilter()])
        self._between = ""

    def has(self, index: int) -> bool:
        """Whether it is a piece."""
        return 0 <= index < self._size

    def feed(self, index: int) -> str:
        """Words so far."""
        text = self._filters.feed(self._between + self._surface(index))
        self._between = " "
        return text

    def finish(self) -> str:
        """Nothing is left but blanks."""
        return self._filters.finish()

    def bytes_of(self, index: int, *, first: bool) -> bytes | None:  # noqa: ARG002
        """Unknown: blanks depend on what follows."""
        return None


class FallbackRun:
    """Pieces of a ``tokenizer.json`` that was made of a SentencePiece model.

    There the bytes between two pieces are one text: where they are no UTF-8, each becomes U+FFFD, so they are held.

    Args:
        surface: an id's piece; None where there is none.
        blanks: how many blanks in front are dropped at most.
    """

    def __init__(self, surface: Callable[[int], str | None], blanks: int) -> None:
        self._surface, self._blanks = surface, blanks
        self._bytes = bytearray()

    def has(self, index: int) -> bool:
        """Whether it is a piece."""
        return self._surface(index) is not None

    def feed(self, index: int) -> str:
        """Pieces, and the bytes before them."""
        piece = (self._surface(index) or "").replace(BLANK, " ")
        if byte := BYTE_PIECE.fullmatch(piece):
            self._bytes.append(int(byte[1], 16))
            return ""
        return self._stripped(self._characters() + piece)

    def finish(self) -> str:
        """The last bytes."""
        return self._stripped(self._characters())

    def bytes_of(self, index: int, *, first: bool) -> bytes | None:
        """Its byte, or its text."""
        piece = (self._surface(index) or "").replace(BLANK, " ")
        byte = BYTE_PIECE.fullmatch(piece)
        data = bytes([int(byte[1], 16)]) if byte else piece.encode()
        dropped = min(self._blanks, len(data) - len(data.lstrip(b" "))) if first else 0
        return data[dropped:]

    def _characters(self) -> str:
        held, self._bytes = self._bytes, bytearray()
        try:
            return held.decode()
        except UnicodeDecodeError:
            return REPLACEMENT * len(held)

    def _stripped(self, text: str) -> str:
        dropped = min(self._blanks, len(text) - len(text.lstrip(" ")))
        self._blanks = 0 if dropped < len(text) else self._blanks - dropped
        return text[dropped:]


class HeldRun:
    """Ids of a decoder of which nothing is known: decoded when all are there."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []

    def has(self, index: int) -> bool:  # noqa: ARG002 - the decoder knows
        """Yes."""
        return True

    def feed(self, index: int) -> str:
        """Nothing yet."""
        self._ids.append(index)
        return ""

    def finish(self) -> str:
        """All of it."""
        return self._decode(self._ids)

    def bytes_of(self, index: int, *, first: bool) -> bytes | None:  # noqa: ARG002
        """Unknown."""
        return None


FALLBACK = (
    {"type": "Replace", "pattern": {"String": BLANK}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
)


def fallback_blanks(state: bytes) -> int | None:
    """Of a ``tokenizer.json``'s decoder, how many blanks in front it drops; None where it is another kind.

    Args:
        state: the decoder's JSON.
    """
    decoder = json.loads(state)
    steps = decoder.get("decoders", []) if isinstance(decoder, dict) and decoder.get("type") == "Sequence" else []
    if tuple(steps[:3]) != FALLBACK:
        return None
    if len(steps) == 3:
        return 0
    last = dict(steps[3])
    blanks: int = last.pop("start", 0)
    return blanks if steps[4:] == [] and last == {"type": "Strip", "content": " ", "stop": 0} else None
