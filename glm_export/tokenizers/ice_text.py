"""ChatGLM-6B: SentencePiece (``ice_text.model``) that numbers its own special tokens, and the rules for marks in text.

Newlines, tabs and runs of blanks are tokens of their own. What splits text at special tokens and tidies decoded text
is transformers' older Python tokenizer, which the 2022 GLM was published on too: see
:mod:`glm_export.tokenizers.infilling`.

Sources: ``tokenization_chatglm.py`` of THUDM/chatglm-6b (v1.1); ``PreTrainedTokenizer`` of transformers 4.30.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece

from glm_export.checkpoint import inside, read_json
from glm_export.errors import CheckpointError
from glm_export.tokenizers.chat import Message, counted_rounds_prompt

EXTRA = "additional_special_tokens"
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
ICE_ROLES = {
    "bos_token": "<sop>", "eos_token": "<eop>", "mask_token": "[MASK]", "pad_token": "<pad>", "unk_token": "<unk>",
}  # fmt: skip
MASKS = ("[MASK]", "[sMASK]", "[gMASK]")
NEWLINE, TAB = "<n>", "<|tab|>"
BLANKS = re.compile(" {2,80}")
BLANK_TOKEN = re.compile(r"<\|blank_([2-9]|[1-7]\d|80)\|>")
# Options that change ids; every v1.1 release has these values.
FIXED = {"num_image_tokens": 0, "do_lower_case": False, "remove_space": False}
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
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise CheckpointError(f"{path} is no SentencePiece model: {error}; download it again") from error


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
    raise CheckpointError(f"{source} should be a token's text, found {value!r}; download the file again")


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
        roles, extra = read_roles(folder, ICE_ROLES)
        marks = (*roles.values(), *extra)
        self._mark_ids = {mark.text: self._find(mark.text) for mark in marks}
        self._splitter = MarkSplitter(marks)
        self._clean_up = bool(options.get("clean_up_tokenization_spaces", True))
        # Control pieces have no text of their own, and <unk> none that was in the prompt.
        hidden = (i for i in range(self._size) if self._pieces.is_control(i) or self._pieces.is_unknown(i))
        self.special: dict[str, int] = {self._pieces.id_to_piece(i): i for i in hidden}
        self._hidden = {*self.special.values(), *self._mark_ids.values()}

        gmask = read_mark(options.get("gmask_token", "[gMASK]"), f"gmask_token in {folder / 'tokenizer_config.json'}")
        self.gmask_id = self._find(gmask.text)
        self.sop_id, self.eop_id = (self._mark_ids[roles[role].text] for role in ("bos_token", "eos_token"))
        self.pad_id = self._mark_ids[roles["pad_token"].text]
        self.mask_ids = {text: self.special[text] for text in MASKS if text in self.special}

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
        for place, part in enumerate(self._splitter.split(text)):
            ids += [self._mark_ids[part]] if place % 2 else self._pieces.encode(protect_whitespace(part))
        return ids

    def decode(self, ids: list[int]) -> str:
        """Text of the ids; special tokens and the padded tail of the vocabulary have none."""
        text: str = self._pieces.decode([i for i in ids if 0 <= i < self._size and i not in self._hidden])
        text = restore_whitespace(text)
        return clean_up(text) if self._clean_up else text

    def chat(self, messages: list[Message]) -> list[int]:
        """Rounds counted from 0; a first question goes in as it is."""
        return self.encode(counted_rounds_prompt(messages))
