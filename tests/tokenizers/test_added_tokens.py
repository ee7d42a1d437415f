"""Tokens a fine-tuned model added, against transformers' Python tokenizers; and in the converted ``tokenizer.json``."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings, strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizer

from glm_export import families
from glm_export.checkpoints.checkpoint import open_checkpoint
from glm_export.errors import CheckpointError
from glm_export.tokenizers import Tokenizer, load_tokenizer
from glm_export.tokenizers.added_tokens import AddedToken, TokenSplitter
from glm_export.tokenizers.tiktoken import read_ranks
from tests.helpers.golden_data import Golden
from tests.tokenizers.test_conversion import written

FAMILIES = ("chatglm2", "chatglm3", "glm4_remote")
SPECIAL = {"special": True, "normalized": False}
# Text, and what AddedToken says of it.
TOKENS: tuple[tuple[str, dict[str, bool]], ...] = (
    ("<|tool|>", SPECIAL),
    ("<|tool|>s", SPECIAL),
    ("<left>", SPECIAL | {"lstrip": True}),
    ("<right>", SPECIAL | {"rstrip": True}),
    ("<word>", SPECIAL | {"single_word": True}),
    ("<shown>", {"special": False, "normalized": False}),
    ("床前", {"special": False, "normalized": False}),
)
FRAGMENTS = [*(text for text, _ in TOKENS), " ", "  ", "\n", "a", "。", "sop", "<", "tool|>", "你好", "1234", "'s"]
TEXTS = st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join) | st.text(max_size=20)


class Published(PreTrainedTokenizer):
    """What the publishers' tokenizers give their base class, in our words: pieces, and special tokens after them."""

    vocab_files_names = {"vocab_file": "tokenizer.model"}  # noqa: RUF012 - the base class's attribute
    own: tuple[str, ...]

    def __init__(self, vocab_file: str, **options: Any) -> None:
        self.load(vocab_file)
        first = self.vocab_size
        self.special = {text: first + place for place, text in enumerate(self.own)}
        super().__init__(**options)

    def load(self, vocab_file: str) -> None:
        raise NotImplementedError

    def get_vocab(self) -> dict[str, int]:
        return (
            {str(self._convert_id_to_token(i)): i for i in range(self.vocab_size)}
            | self.special
            | self._added_tokens_encoder
        )

    def _convert_token_to_id(self, token: Any) -> Any:
        return self.special[token] if token in self.special else self.find(token)

    def find(self, token: Any) -> int:
        raise NotImplementedError


class PublishedPieces(Published):
    def load(self, vocab_file: str) -> None:
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=vocab_file)

    @property
    def vocab_size(self) -> int:
        return self.pieces.vocab_size()

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return self.pieces.EncodeAsPieces(text)

    def find(self, token: str) -> int:
        return self.pieces.PieceToId(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self.pieces.IdToPiece(index) if index < self.vocab_size else self.own[index - self.vocab_size]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return self.pieces.DecodePieces(tokens)


class PublishedRanks(Published):
    """Its pieces are bytes; the family's own tokens stand among the added ones, as the released file lists them."""

    def load(self, vocab_file: str) -> None:
        import tiktoken

        self.ranks = read_ranks(Path(vocab_file))
        self.bytes_of = {rank: token for token, rank in self.ranks.items()}
        pattern = families.load("glm4_remote").SPLIT_PATTERN
        self.encoding = tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=self.ranks, special_tokens={})

    @property
    def vocab_size(self) -> int:
        return len(self.ranks)

    def _tokenize(self, text: str, **_: Any) -> list[Any]:
        return [self.bytes_of[i] for i in self.encoding.encode(text, disallowed_special=())]

    def find(self, token: Any) -> int:
        return self.ranks[token]

    def _convert_id_to_token(self, index: int) -> Any:
        return self.bytes_of.get(index, "")

    def convert_tokens_to_string(self, tokens: list[Any]) -> str:
        return b"".join(tokens).decode("utf-8", errors="replace")


def theirs_of(folder: Path, family: str) -> Published:
    base = PublishedRanks if family == "glm4_remote" else PublishedPieces
    kind = type("ChatGLMTokenizer", (base,), {"own": families.load(family).SPECIAL_TOKENS})
    return kind.from_pretrained(str(folder))


def with_tokens(family: str, folder: Path, tokens: Any = TOKENS, *, legacy: bool = False) -> Path:
    """A copy of a golden folder's tokenizer whose vocabulary was enlarged."""
    source = Golden(family).folder
    folder.mkdir(exist_ok=True)
    for name in ("config.json", "tokenizer.model"):
        shutil.copy(source / name, folder / name)
    values = json.loads((source / "tokenizer_config.json").read_text())
    values.pop("auto_map")
    first = Golden(family).tokenizer["special"]["sop" if family != "glm4_remote" else "<|end_of_video|>"] + 10
    numbered = {text: (first + place, flags) for place, (text, flags) in enumerate(tokens)}
    values["additional_special_tokens"] = [
        *values.get("additional_special_tokens", []), *(text for text, flags in tokens if flags["special"])
    ]  # fmt: skip
    if legacy:
        values.pop("added_tokens_decoder", None)
        (folder / "added_tokens.json").write_text(json.dumps({t: i for t, (i, _) in numbered.items()}))
    else:
        defaults = {"lstrip": False, "rstrip": False, "single_word": False}
        values["added_tokens_decoder"] = values.get("added_tokens_decoder", {}) | {
            str(index): defaults | flags | {"content": text} for text, (index, flags) in numbered.items()
        }
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    return folder


def ours_of(folder: Path, family: str) -> Tokenizer:
    return load_tokenizer(folder, open_checkpoint(Golden(family).folder).config)


@cache
def both(family: str) -> tuple[Tokenizer, Published]:
    import tempfile

    folder = with_tokens(family, Path(tempfile.mkdtemp()))
    try:
        return ours_of(folder, family), theirs_of(folder, family)
    finally:
        shutil.rmtree(folder)


# -- transformers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@given(text=TEXTS)
@settings(max_examples=300)
def test_texts_equal_transformers(family: str, text: str) -> None:
    ours, theirs = both(family)
    ids = theirs(text, add_special_tokens=False).input_ids
    assert ours.encode_plain(text) == ids
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_the_tokens_the_ids_differ(family: str) -> None:
    ours, _ = both(family)
    before = ours_of(Golden(family).folder, family)
    for text, _ in TOKENS:
        assert before.encode_plain(text) != ours.encode_plain(text)
        assert len(ours.encode_plain(text)) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_older_file_equals_transformers(family: str, tmp_path: Path) -> None:
    """``added_tokens.json`` of saves before 4.34; roles say which tokens are special."""
    folder = with_tokens(family, tmp_path / "old", legacy=True)
    ours, theirs = ours_of(folder, family), theirs_of(folder, family)
    for text in ("a <|tool|> b<|tool|>s", "<left> <shown> <right>\n", "床前明月光", "x<word>y <word> z"):
        ids = theirs(text, add_special_tokens=False).input_ids
        assert ours.encode_plain(text) == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_the_newer_file_counts_where_both_are(tmp_path: Path) -> None:
    folder = with_tokens("chatglm3", tmp_path / "both", TOKENS[:1])
    (folder / "added_tokens.json").write_text(json.dumps({"<stale>": 300}))
    ours, theirs = ours_of(folder, "chatglm3"), theirs_of(folder, "chatglm3")
    text = "<stale> <|tool|>"
    assert ours.encode_plain(text) == theirs(text, add_special_tokens=False).input_ids


# -- what released folders list ----------------------------------------------------------------------------------------


def test_a_released_folder_lists_its_own_tokens_and_reads_as_before(tmp_path: Path) -> None:
    """ChatGLM3's newer uploads: "sop" is in the list, and still in no "philosophy"."""
    special: dict[str, int] = Golden("chatglm3").tokenizer["special"]
    listed = ("[gMASK]", "sop", "<|user|>", "<|assistant|>", "<|observation|>")
    folder = with_tokens("chatglm3", tmp_path / "released", ())
    values = json.loads((folder / "tokenizer_config.json").read_text())
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False, "special": False}
    values["added_tokens_decoder"] = {str(special[text]): {"content": text} | flags for text in listed}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    ours, golden = ours_of(folder, "chatglm3"), Golden("chatglm3").tokenizer
    for case in golden["texts"]:
        assert ours.encode(case["text"]) == case["ids"]
        assert ours.decode(case["ids"]) == case["decoded_plain"]
    assert special["sop"] not in ours.encode_plain("philosophy<|user|>")


def test_own_tokens_elsewhere_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"numbers <\|user\|> \d+, and this family's vocabulary \d+"):
        ours_of(with_tokens("chatglm3", tmp_path / "a", (("<|user|>", SPECIAL),)), "chatglm3")


@pytest.mark.parametrize(
    "decoder",
    [
        [],
        {"x": {"content": "<a>"}},
        {"5": "<a>"},
        {"5": {"content": 3}},
        {"400": {"content": "<a>"}, "401": {"content": "<a>"}},
    ],
)
def test_a_damaged_list_is_refused(decoder: Any, tmp_path: Path) -> None:
    folder = with_tokens("glm4_remote", tmp_path / "a", ())
    values = json.loads((folder / "tokenizer_config.json").read_text()) | {"added_tokens_decoder": decoder}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"added_tokens_decoder|gives <a> the ids"):
        ours_of(folder, "glm4_remote")


def test_an_id_of_two_tokens_is_kept_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """transformers counts ChatGLM's unnamed pieces as one, so tokens it adds take the ids of the last special ones."""
    folder = with_tokens("chatglm3", tmp_path / "a", ())
    index = Golden("chatglm3").tokenizer["special"]["<|assistant|>"]
    values = json.loads((folder / "tokenizer_config.json").read_text())
    values["added_tokens_decoder"] = {str(index): {"content": "<tool>", "special": False}}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    with caplog.at_level(logging.WARNING):
        ours = ours_of(folder, "chatglm3")
    assert f"gives the added token <tool> the id {index}, which <|assistant|> has" in caplog.text
    assert ours.encode_plain("<tool>") == theirs_of(folder, "chatglm3")("<tool>", add_special_tokens=False).input_ids


def test_chatglm_6b_reads_added_tokens(tmp_path: Path) -> None:
    folder = tmp_path / "chatglm"
    shutil.copytree(Golden("chatglm").folder, folder)
    size = sentencepiece.SentencePieceProcessor(model_file=str(folder / "ice_text.model")).vocab_size()
    values = json.loads((folder / "tokenizer_config.json").read_text())
    values["added_tokens_decoder"] = {
        str(size): {"content": "<tool>", "special": True}, str(size + 1): {"content": "<shown>", "special": False},
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    ours, before = ours_of(folder, "chatglm"), ours_of(Golden("chatglm").folder, "chatglm")
    expected = [*before.encode_plain("你好"), size, *before.encode_plain(" hi"), size + 1]
    assert ours.encode_plain("你好<tool> hi<shown>") == expected
    assert ours.decode(expected) == f"{before.decode(expected[:-1])} <shown>"


# -- tokenizer.json ----------------------------------------------------------------------------------------------------

CONVERTIBLE = tuple(token for token in TOKENS if token[1]["special"] and "single_word" not in token[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_converted_file_has_them(family: str, tmp_path: Path, checkpoint_with: Callable[..., Path]) -> None:
    source = checkpoint_with(family, CONVERTIBLE)
    folder = written(source, tmp_path / "out")
    ours, exported = ours_of(source, family), ours_of(folder, family)
    theirs = AutoTokenizer.from_pretrained(folder)
    for text in ("a <|tool|> b<|tool|>s", "<left> x <right>\n", "  <left>", "床前明月光<|tool|>床前"):
        ids = ours.encode_plain(text)
        assert theirs(text, add_special_tokens=False).input_ids == ids == exported.encode_plain(text)
        assert theirs(text).input_ids == ours.encode(text)
        assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids) == exported.decode(ids)
    if family != "glm4_remote":
        assert theirs("philosophy").input_ids == ours.encode("philosophy")


@pytest.mark.parametrize(
    ("tokens", "reason"),
    [
        (TOKENS[4:5], "single word"),
        (TOKENS[5:6], "would decode"),  # others write no blanks around it
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_file_cannot_say_is_said(
    family: str, tokens: Any, reason: str, tmp_path: Path, checkpoint_with: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    with caplog.at_level(logging.WARNING):
        folder = written(checkpoint_with(family, tokens), tmp_path / "out")
    assert reason in caplog.text
    assert not (folder / "tokenizer.json").exists()
    assert ours_of(folder, family).encode_plain(tokens[0][0]) != ours_of(Golden(family).folder, family).encode_plain(
        tokens[0][0]
    )


@pytest.fixture
def checkpoint_with(tmp_path: Path) -> Callable[..., Path]:
    def make(family: str, tokens: Any) -> Path:
        folder = tmp_path / "source"
        shutil.copytree(Golden(family).folder, folder)
        return with_tokens(family, folder, tokens)

    return make


def test_splitting_leaves_nothing_out() -> None:
    splitter = TokenSplitter([AddedToken(text="<a>", index=1), AddedToken(text="<a>b", index=2)])
    assert list(splitter.split("<a>b<a><a>x")) == [2, 1, 1, "x"]
    assert list(TokenSplitter([]).split("x")) == ["x"]
    assert list(TokenSplitter([]).split("")) == []
