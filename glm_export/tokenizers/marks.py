"""Special tokens inside text, and the tidying of decoded text, as transformers' older Python tokenizers do both.

GLM (2022) and ChatGLM-6B were published on them.

Source: ``PreTrainedTokenizer`` of transformers 4.30.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece

from glm_export.errors import CheckpointError, shown
from glm_export.model_folder import inside, read_json
from glm_export.tokenizers.library import reading

EXTRA = "additional_special_tokens"
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# What transformers' clean_up_tokenization does, in its order; it was on by default when these models came out.
CLEAN_UP = {
    " .": ".", " ?": "?", " !": "!", " ,": ",", " ' ": "'", " n't": "n't", " 'm": "'m", " 's": "'s", " 've": "'ve",
    " 're": "'re",
}  # fmt: skip


def clean_up(text: str) -> str:
    """Take the blank before English punctuation away, as the publishers' ``decode`` does."""
    for spaced, tight in CLEAN_UP.items():
        text = text.replace(spaced, tight)
    return text


def load_sentencepiece(path: Path) -> Any:
    """The processor of a SentencePiece file.

    Raises:
        CheckpointError: the file is damaged.
    """
    with reading(path, "SentencePiece model"):
        return sentencepiece.SentencePieceProcessor(model_file=str(path))


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A token recognised inside text. One written as a plain string takes the blanks on both its sides."""

    text: str
    lstrip: bool = True
    rstrip: bool = True


class MarkSplitter:
    """Cuts text at marks: the leftmost first, the longest of those that begin there."""

    def __init__(self, marks: Iterable[Mark]) -> None:
        self._marks = {mark.text: mark for mark in marks}
        longest_first = sorted(self._marks, key=len, reverse=True)
        self._pattern = re.compile("(" + "|".join(re.escape(text) for text in longest_first) + ")")

    def split(self, text: str) -> list[str]:
        """Parts in order; those at odd places are marks."""
        parts = self._pattern.split(text)
        for place in range(1, len(parts), 2):
            mark = self._marks[parts[place]]
            if mark.rstrip:
                parts[place + 1] = parts[place + 1].lstrip()
            if mark.lstrip:
                parts[place - 1] = parts[place - 1].rstrip()
        return parts


def optional_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object of the folder, empty where there is no such file."""
    return read_json(folder, name) if inside(folder, name).is_file() else {}


def read_mark(value: Any, source: str) -> Mark:
    """A token as transformers writes it: a string, or an object that says which blanks it takes."""
    if isinstance(value, Mapping) and isinstance(value.get("content"), str) and value["content"]:
        return Mark(text=value["content"], lstrip=bool(value.get("lstrip")), rstrip=bool(value.get("rstrip")))
    if isinstance(value, str) and value:
        return Mark(text=value)
    raise CheckpointError(f"{source} should be a token's text, found {shown(value)}; download the file again")


def read_roles(folder: Path, defaults: Mapping[str, str]) -> tuple[dict[str, Mark], list[Mark]]:
    """Which token has which role, and the special tokens without one.

    Raises:
        CheckpointError: a file is damaged.
    """
    roles = {role: Mark(text=text) for role, text in defaults.items()}
    extra: list[Mark] = []
    # The later file wins, as in transformers.
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        values = optional_json(folder, name)
        for role in ROLES:
            if values.get(role) is not None:
                roles[role] = read_mark(values[role], f"{role} in {folder / name}")
        if values.get(EXTRA):
            if not isinstance(values[EXTRA], list):
                raise CheckpointError(f"{EXTRA} in {folder / name} should be a list; download the file again")
            extra = [read_mark(value, f"{EXTRA} in {folder / name}") for value in values[EXTRA]]
    return roles, extra


def read_added(folder: Path, size: int, surface: Callable[[int], str]) -> dict[str, tuple[int, Mark, bool]]:
    """Tokens numbered outside the vocabulary: id, mark, and whether the file calls it special.

    ``added_tokens.json``, or ``added_tokens_decoder`` in ``tokenizer_config.json`` as later transformers save it.

    Args:
        folder: the model's.
        size: of the vocabulary.
        surface: its pieces.

    Raises:
        CheckpointError: a file is damaged, or gives a token the id of another piece.
    """
    name, added = "added_tokens.json", {}
    entries: list[tuple[Any, Any]] = [(index, text) for text, index in optional_json(folder, name).items()]
    later = optional_json(folder, "tokenizer_config.json").get("added_tokens_decoder")
    if later:
        name, entries = "tokenizer_config.json", list(later.items())
    for key, value in entries:
        mark = read_mark(value, f"token {key} in {folder / name}")
        if not str(key).isdecimal():
            raise CheckpointError(f"{folder / name} should number {mark.text}, found {key!r}; download it again")
        index = int(key)
        if index < size and surface(index) != mark.text:
            raise CheckpointError(
                f"{folder / name} gives {mark.text} the id {index}, which is {surface(index)!r} in the "
                "vocabulary; the files belong to different models"
            )
        added[mark.text] = (index, mark, isinstance(value, Mapping) and bool(value.get("special")))
    return added
