"""Tokens added to a vocabulary, as the folders of fine-tuned models name them.

``added_tokens_decoder`` in ``tokenizer_config.json``, or ``added_tokens.json`` of older releases. They mean what
transformers' Python tokenizers make of them: cut out of the text before anything else reads it, whatever stands around
them.

Source: ``PreTrainedTokenizerBase._from_pretrained``, ``PreTrainedTokenizer.tokenize`` and ``_decode`` of transformers
4.57.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from glm_export.errors import CheckpointError, shown
from glm_export.model_folder import inside, read_json
from glm_export.tokenizers.marks import EXTRA, ROLES, optional_json

CONFIG, LEGACY = "tokenizer_config.json", "added_tokens.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedToken:
    """A token recognised inside text.

    ``special``: left out of decoded text. ``lstrip`` and ``rstrip``: takes the whitespace on that side.
    ``single_word``: only where blanks, or the ends of the text, are around it. ``normalized``: found in normalised
    text; means nothing to transformers' Python tokenizers.
    """

    text: str
    index: int
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False

    @property
    def plain(self) -> bool:
        """Whether it takes nothing around it, and stands anywhere."""
        return not (self.lstrip or self.rstrip or self.single_word)

    def for_library(self, *, normalized: bool = False) -> tokenizers.AddedToken:
        """The same token for ``tokenizer.json``."""
        return tokenizers.AddedToken(
            self.text,
            special=self.special,
            lstrip=self.lstrip,
            rstrip=self.rstrip,
            single_word=self.single_word,
            normalized=normalized,
        )

    def to_json(self) -> dict[str, Any]:
        """As ``added_tokens_decoder`` has it."""
        flags = {name: getattr(self, name) for name in ("lstrip", "rstrip", "single_word", "special")}
        return {"content": self.text, "normalized": False} | flags


def read_added_tokens(folder: Path, *, legacy: bool = True) -> tuple[AddedToken, ...]:
    """What the folder adds to its vocabulary, in order of ids.

    Args:
        folder: the model's.
        legacy: read ``added_tokens.json`` where ``tokenizer_config.json`` does not speak of tokens; readers of
            ``tokenizer.json`` do not.

    Raises:
        CheckpointError: a file is damaged, or names a token twice.
    """
    decoder = optional_json(folder, CONFIG).get("added_tokens_decoder")
    # As in transformers, the older file is read only where the newer one does not speak of tokens at all.
    tokens: Iterable[AddedToken] = _from_decoder(folder, decoder) if decoder is not None else ()
    if legacy and decoder is None:
        tokens = _from_legacy(folder)
    by_text: dict[str, AddedToken] = {}
    for token in sorted(tokens, key=lambda token: token.index):
        if token.text in by_text:
            raise CheckpointError(
                f"{folder / (LEGACY if decoder is None else CONFIG)} gives {token.text} the ids "
                f"{by_text[token.text].index} and {token.index}; keep the one the model was trained with"
            )
        by_text[token.text] = token
    return tuple(by_text.values())


def _from_decoder(folder: Path, decoder: Any) -> Iterator[AddedToken]:
    source = f"added_tokens_decoder in {folder / CONFIG}"
    if not isinstance(decoder, Mapping):
        raise CheckpointError(f"{source} should map ids to tokens, found {shown(decoder)}; download the file again")
    named = _named_special(folder)
    for key, value in decoder.items():
        content = value.get("content") if isinstance(value, Mapping) else None
        if not str(key).isdecimal() or not isinstance(content, str):
            raise CheckpointError(
                f"{source} should map ids to tokens, found {shown(key)}: {shown(value)}; download it again"
            )
        if content:
            flags = {name: bool(value.get(name)) for name in ("lstrip", "rstrip", "single_word")}
            special = bool(value.get("special")) or content in named
            normalized = bool(value.get("normalized", not special))
            yield AddedToken(text=content, index=int(key), special=special, normalized=normalized, **flags)


def _from_legacy(folder: Path) -> Iterator[AddedToken]:
    if not inside(folder, LEGACY).is_file():
        return
    special = _named_special(folder)
    for text, index in read_json(folder, LEGACY).items():
        if not text or type(index) is not int or index < 0:
            raise CheckpointError(
                f"{folder / LEGACY} should number tokens, found {shown(text)}: {shown(index)}; download it again"
            )
        yield AddedToken(text=text, index=index, special=text in special)


def _named_special(folder: Path) -> set[str]:
    """Tokens with a role, and those the folder lists as special."""
    special: set[str] = set()
    for name in (CONFIG, "special_tokens_map.json"):
        values = optional_json(folder, name)
        named = [values.get(role) for role in ROLES] + list(values.get(EXTRA) or [])
        special |= {str(token.get("content") if isinstance(token, Mapping) else token) for token in named if token}
    return special


def without_own(
    tokens: Iterable[AddedToken], own: Mapping[str, int], surface: Callable[[int], str | None], folder: Path
) -> tuple[AddedToken, ...]:
    """The tokens that are not the family's own: released folders list those as well.

    Args:
        tokens: the folder's.
        own: special tokens the family numbers itself.
        surface: what an id is without the added tokens; None where it is nothing.
        folder: for messages.

    Raises:
        CheckpointError: one of the family's own tokens has another id, or takes what stands around it.
    """
    added = []
    for token in tokens:
        if token.text in own:
            if own[token.text] != token.index:
                raise CheckpointError(
                    f"{folder} numbers {token.text} {token.index}, and this family's vocabulary {own[token.text]}; the "
                    "tokenizer's files belong to different models"
                )
            if not token.plain:
                raise CheckpointError(
                    f"{folder} has {token.text} take the blanks around it, and this family's prompt is written without "
                    "that; set lstrip, rstrip and single_word of it to false"
                )
            continue
        already = surface(token.index)
        if already not in (None, token.text):
            # Older transformers counted pieces wrongly when they added tokens to ChatGLM's; the model was trained so.
            logger.warning(
                "%s gives the added token %s the id %d, which %s has as well; both are kept, as in transformers",
                folder,
                token.text,
                token.index,
                already,
            )
        added.append(token)
    return tuple(added)


class TokenSplitter:
    """Cuts added tokens out of text: the leftmost first, the longest of those that begin there."""

    def __init__(self, tokens: Iterable[AddedToken]) -> None:
        self._tokens = {token.text: token for token in tokens}
        longest_first = sorted(self._tokens, key=len, reverse=True)
        self._pattern = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if longest_first else None

    def split(self, text: str) -> Iterator[str | int]:
        """Text between tokens, and tokens as their ids."""
        parts = [part for part in self._pattern.split(text) if part] if self._pattern else [text]
        for place, part in enumerate(parts):
            token = self._tokens.get(part)
            if token is None:
                continue
            left = parts[place - 1] if place else ""
            right = parts[place + 1] if place + 1 < len(parts) else ""
            if token.rstrip and right:
                parts[place + 1] = right.lstrip()
            if token.lstrip and left:
                parts[place - 1] = left.rstrip()
            # What was there before blanks were taken counts, as in transformers.
            if token.single_word and left and left[-1] != " ":
                parts[place - 1] += part
                parts[place] = ""
            elif token.single_word and right and right[0] != " ":
                parts[place + 1] = part + parts[place + 1]
                parts[place] = ""
        for part in parts:
            token = self._tokens.get(part)
            if token is not None:
                yield token.index
            elif part:
                yield part

    def encode(self, text: str, encode: Callable[[str], Sequence[int]]) -> list[int]:
        """Ids of a text.

        Args:
            text: any.
            encode: ids of what holds no token.
        """
        ids: list[int] = []
        for part in self.split(text):
            ids += [part] if isinstance(part, int) else encode(part)
        return ids


def decode_around(
    ids: Iterable[int], hidden: AbstractSet[int], shown: Mapping[int, str], decode: Callable[[list[int]], str]
) -> str:
    """Text of ids where added tokens without ``special`` are written out, a blank on each side.

    Args:
        ids: any.
        hidden: those without text.
        shown: added tokens that have one.
        decode: text of a run of other ids.
    """
    parts: list[str] = []
    run: list[int] = []
    for index in ids:
        if index in shown:
            between = decode(run) if run else ""
            parts += [between, shown[index]] if between else [shown[index]]
            run = []
        elif index not in hidden:
            run.append(index)
    if run:
        parts.append(decode(run))
    return " ".join(parts)
