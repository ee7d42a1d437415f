"""GLM in GPT-2's and BERT's vocabularies: equal to transformers' own tokenizers under GLM's rules."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st
from tokenizers import AddedToken, Tokenizer as Library, models, trainers
from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel
from transformers import BertTokenizer, GPT2Tokenizer, PreTrainedTokenizer

from glm_export.errors import CheckpointError
from glm_export.tokenizers.infilling import InfillingTokenizer, load_infilling_tokenizer
from glm_export.tokenizers.marks import Mark, MarkSplitter, clean_up

CORPUS = [
    "The capital of France is Paris. It lies on the Seine; the river is 777 km long!",
    "Where is the mask? It's here, they've said, and we're sure: [MASK] it is.",
    "Beijing is the capital of China.\nIts people don't sleep\tmuch...",
    "北京是中国的首都。上海呢？",
] * 4
TEXTS = [
    "The capital of France is [MASK].", "two [MASK] masks [MASK] here", "", "   ", "It's  here , isn't it ?\n",
    "北京是中国的首都。", "Ünïcödé 😀", "a<|startofpiece|>b<|endofpiece|> c", "[CLS] x [SEP] y <|endoftext|>", "[MASK]",
    "unknown: ✠ and [UNK]", "[mask] is no mask",
]  # fmt: skip
PIECE_TOKENS = ["<|startofpiece|>", "<|endofpiece|>"]
GPT2_ADDED = [*PIECE_TOKENS, "[CLS]", "[MASK]", "[SEP]", "[UNK]", "[gMASK]", "[sMASK]"]
"""In the order of GLM-10B, following <|endoftext|>."""


def write_tokens(folder: Path, added: dict[str, int], roles: dict[str, object]) -> None:
    (folder / "added_tokens.json").write_text(json.dumps(added))
    (folder / "special_tokens_map.json").write_text(json.dumps(roles))


def stripping(token: str) -> AddedToken:
    """What a plain string in ``special_tokens_map.json`` meant to transformers 4.30."""
    return AddedToken(token, lstrip=True, rstrip=True, normalized=False, special=True)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> tuple[InfillingTokenizer, PreTrainedTokenizer]:
    folder = tmp_path_factory.mktemp("gpt2")
    library = Library(models.BPE())
    library.pre_tokenizer = ByteLevel(add_prefix_space=False)
    alphabet = ByteLevel.alphabet()
    library.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet))
    library.model.save(str(folder))
    vocabulary = json.loads((folder / "vocab.json").read_text())
    vocabulary["<|endoftext|>"] = end = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    roles = {"cls_token": "[CLS]", "mask_token": "[MASK]", "unk_token": "[UNK]", "pad_token": "<|endoftext|>",
             "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}  # fmt: skip
    extra = [*PIECE_TOKENS, "[gMASK]", "[sMASK]"]
    added = {token: end + 1 + place for place, token in enumerate(GPT2_ADDED)}
    write_tokens(folder, added, {**roles, "additional_special_tokens": extra})

    theirs = GPT2Tokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    for token in GPT2_ADDED:
        theirs.add_tokens([AddedToken(token, lstrip=True, rstrip=True, normalized=False, special=token != "[SEP]")])
    special = {role: stripping(token) for role, token in roles.items()}
    theirs.add_special_tokens({**special, "additional_special_tokens": [stripping(token) for token in extra]})
    return load_infilling_tokenizer(folder), theirs


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[InfillingTokenizer, PreTrainedTokenizer]:
    folder = tmp_path_factory.mktemp("bert")
    library = Library(models.WordPiece(unk_token="[UNK]"))
    library.pre_tokenizer = BertPreTokenizer()
    base = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    corpus = [text.lower().replace("[mask]", "") for text in CORPUS]
    library.train_from_iterator(corpus, trainers.WordPieceTrainer(vocab_size=180, special_tokens=base))
    library.model.save(str(folder))
    size = len((folder / "vocab.txt").read_text().splitlines())
    write_tokens(folder, {token: size + place for place, token in enumerate(PIECE_TOKENS)}, {
        "sep_token": "[SEP]", "additional_special_tokens": PIECE_TOKENS,
    })  # fmt: skip
    theirs = BertTokenizer(str(folder / "vocab.txt"), additional_special_tokens=[stripping(t) for t in PIECE_TOKENS])
    return load_infilling_tokenizer(folder), theirs


Pair = tuple[InfillingTokenizer, PreTrainedTokenizer]


@pytest.fixture(params=["gpt2", "bert"])
def pair(request: pytest.FixtureRequest) -> Pair:
    both: Pair = request.getfixturevalue(request.param)
    return both


def agree(pair: Pair, text: str) -> None:
    ours, theirs = pair
    plain = theirs(text, add_special_tokens=False).input_ids
    assert ours.encode_plain(text) == plain
    assert ours.encode(text) == [ours.cls_id, *plain, ours.eos_id]
    expected = theirs.decode(plain, skip_special_tokens=True, clean_up_tokenization_spaces=True)
    assert ours.decode(ours.encode(text)) == expected


def test_byte_pairs_and_word_pieces_equal_transformers(pair: Pair) -> None:
    for text in (*TEXTS, *CORPUS):
        agree(pair, text)


PARTS = [
    "[MASK]",
    "[gMASK]",
    " ",
    "  ",
    "\n",
    "the",
    "Paris",
    "n't",
    " 's",
    ",",
    "。",
    "中",
    "é",
    "😀",
    "[CLS]",
    "<|",
    "7",
]


@given(parts=st.lists(st.sampled_from(PARTS), max_size=16))
def test_gpt2_and_bert_equal_transformers_on_any_mixture(gpt2: Pair, bert: Pair, parts: list[str]) -> None:
    agree(gpt2, "".join(parts))
    agree(bert, "".join(parts))


@given(text=st.text(max_size=40))
def test_byte_pairs_come_back(gpt2: Pair, text: str) -> None:
    """Every byte has a piece; only what is tidied on purpose may change."""
    tokenizer = gpt2[0]
    if not any(token in text for token in (*GPT2_ADDED, "<|endoftext|>")):
        assert tokenizer.decode(tokenizer.encode(text)) == clean_up(text)


@given(ids=st.lists(st.integers(min_value=-1, max_value=400), max_size=20))
def test_any_ids_decode(gpt2: Pair, bert: Pair, ids: list[int]) -> None:
    for ours, theirs in (gpt2, bert):
        known = [i for i in ids if 0 <= i < len(theirs)]
        expected = theirs.decode(known, skip_special_tokens=True, clean_up_tokenization_spaces=True)
        assert ours.decode(ids) == expected


def test_special_ids_of_byte_pairs(gpt2: Pair) -> None:
    tokenizer, theirs = gpt2
    end = tokenizer.eos_id
    assert (tokenizer.sop_id, tokenizer.eop_id, tokenizer.cls_id, tokenizer.pad_id) == (end + 1, end + 2, end + 3, end)
    # GLM-10B: <|endoftext|> 50256, [MASK] 50260, [gMASK] 50263, [sMASK] 50264, dBLOCK 50265.
    assert tokenizer.mask_ids == {"[MASK]": end + 4, "[sMASK]": end + 8, "[gMASK]": end + 7}
    assert tokenizer.dblock_id == end + 9
    surfaces = [theirs.convert_ids_to_tokens(i) for i in sorted(tokenizer.sentence_end_ids)]
    assert {".", "?", "!", ";", ":"} <= set(surfaces)
    assert all(any(mark in surface for mark in ".?!;:") for surface in surfaces)
    assert theirs.convert_tokens_to_ids("Ċ") not in tokenizer.sentence_end_ids


def test_special_ids_of_word_pieces(bert: Pair) -> None:
    tokenizer, theirs = bert
    assert (tokenizer.pad_id, tokenizer.cls_id, tokenizer.eos_id) == (0, 3, 4)
    assert tokenizer.mask_ids == {"[MASK]": 5}
    assert tokenizer.dblock_id is None
    assert (tokenizer.sop_id, tokenizer.eop_id) == (len(theirs) - 2, len(theirs) - 1)
    assert tokenizer.stop_ids == (tokenizer.eop_id, tokenizer.eos_id)
    ends = {theirs.convert_ids_to_tokens(i) for i in tokenizer.sentence_end_ids}
    assert {".", "?", "!", ";", ":", "。", "？"} <= ends


def test_an_object_says_which_blanks_a_token_takes(gpt2: Pair, tmp_path: Path) -> None:
    shutil.copytree(gpt2[0]._folder, tmp_path, dirs_exist_ok=True)
    roles = json.loads((tmp_path / "special_tokens_map.json").read_text())
    roles["mask_token"] = {"content": "[MASK]", "lstrip": True, "rstrip": False, "single_word": False}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(roles))
    ours = load_infilling_tokenizer(tmp_path)
    assert ours.encode_plain("is [MASK] the") == [
        *ours.encode_plain("is"), ours.mask_ids["[MASK]"], *ours.encode_plain(" the"),
    ]  # fmt: skip


def test_byte_pairs_need_no_unknown_token(gpt2: Pair, tmp_path: Path) -> None:
    shutil.copytree(gpt2[0]._folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "special_tokens_map.json").unlink()
    added = json.loads((tmp_path / "added_tokens.json").read_text())
    del added["[UNK]"]
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    ours = load_infilling_tokenizer(tmp_path)
    assert ours.decode(ours.encode("[UNK] ✠ [gMASK]")) == "[UNK] ✠"
    assert ours.mask_ids == gpt2[0].mask_ids


def damage_json(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads((folder / "vocab.json").read_text())
    change(values)
    (folder / "vocab.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "merges.txt").unlink(), r"vocab\.json but no merges\.txt"),
        (
            lambda f: (f / "merges.txt").write_text("#version: 0.2\nzq qz\n"),
            r"merges\.txt is no list of pairs of vocab\.json",
        ),
        (lambda f: (f / "vocab.json").write_text("[1]"), r"vocab\.json should hold a JSON object"),
        (lambda f: damage_json(f, lambda v: v.update(a=9999)), r"vocab\.json should number its \d+ pieces from 0"),
        (lambda f: damage_json(f, lambda v: v.update(a=[1])), r"vocab\.json should number its \d+ pieces from 0"),
        (lambda f: damage_json(f, lambda v: v.update({"aaaa": v.pop("a")})), r"vocab\.json lacks 1 of the 256"),
    ],
)
def test_damaged_byte_pairs_are_named(
    gpt2: Pair, damage: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    shutil.copytree(gpt2[0]._folder, tmp_path, dirs_exist_ok=True)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_infilling_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff\xfe", r"vocab\.txt should hold one piece a line"), (b"a\nb\n", r"vocab\.txt has no \[UNK\] among its 2")],
)
def test_damaged_word_pieces_are_named(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_infilling_tokenizer(tmp_path)


# -- shared rules ------------------------------------------------------------------------------------------------------


@given(text=st.text(alphabet=" .?!,'ntmsver", max_size=40))
def test_clean_up_equals_transformers(text: str) -> None:
    assert clean_up(text) == PreTrainedTokenizer.clean_up_tokenization(text)


def test_the_longest_mark_wins() -> None:
    splitter = MarkSplitter([Mark(text="<a>"), Mark(text="<a><b>", lstrip=False), Mark(text="x", rstrip=False)])
    assert splitter.split(" <a><b>  y <a> x ") == [" ", "<a><b>", "y", "<a>", "", "x", " "]
    assert splitter.split("") == [""]
