"""``tokenizer.json`` made from ``tokenizer.model``: the ids of the publishers' code and of our reader, or no file."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings, strategies as st
from transformers import AutoTokenizer

from glm_export.artifacts.program import OnnxProgram
from glm_export.checkpoints.checkpoint import open_checkpoint
from glm_export.embedded import DEMO, FOLDERS
from glm_export.errors import CheckpointError
from glm_export.exporter.loader_files import write_loader_files
from glm_export.spec.signature import decoder_signature
from glm_export.tokenizers import Tokenizer, load_tokenizer
from glm_export.tokenizers.chat import Message
from glm_export.tokenizers.conversion import FORMAT, GUARD, Conversion, check_exact, convert
from tests.helpers.golden_data import WITH_TOKENIZER, Golden
from tests.tokenizers.test_tokenizers import conversation

SYSTEM: Message = {"role": "system", "content": "You are GLM."}
FRAGMENTS = [" ", "  ", "▁", "\n", "\t", "--", "=", "aa", "0", "sop", "'s", "[gMASK]", "<|user|>", "</s>", "<0x0A>",
             "的", "，", "模型", "😀", "\u3000", "\x00", "\x85", "\u2028", "é", GUARD]  # fmt: skip
TEXTS = st.text(max_size=40) | st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join)


def folder_of(name: str) -> Path:
    return FOLDERS[DEMO] if name == DEMO else Golden(name).folder


@cache
def converted(name: str) -> tuple[Tokenizer, Conversion]:
    folder = folder_of(name)
    config = open_checkpoint(folder).config
    ours = load_tokenizer(folder, config)
    return ours, convert(folder, config, ours)


def written(checkpoint: Path, folder: Path) -> Path:
    """A folder with the files of an export, without the program."""
    opened = open_checkpoint(checkpoint)
    folder.mkdir()
    signature = decoder_signature(opened.config, dtype="float32", logits="all")
    write_loader_files(opened, folder, "float32", signature)
    return folder


def plain(library: tokenizers.Tokenizer, text: str) -> list[int]:
    return library.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", WITH_TOKENIZER)
def test_every_golden_text(name: str) -> None:
    ours, conversion = converted(name)
    library = conversion.tokenizer
    for case in Golden(name).tokenizer["texts"]:
        assert library.encode(case["text"]).ids == case["ids"]
        assert plain(library, case["text"]) == case["ids_plain"]
        assert library.decode(case["ids"]) == ours.decode(case["ids"])


@pytest.mark.parametrize("name", [*WITH_TOKENIZER, DEMO])
@given(text=TEXTS)
@settings(max_examples=300)
def test_any_text(name: str, text: str) -> None:
    """The demo's model also takes away blanks at the ends and in rows."""
    ours, conversion = converted(name)
    if GUARD in text and name != "glm4_remote":
        text = text.replace(GUARD, f"{GUARD} ")  # in front of a special token's name it would be one
    ids = ours.encode_plain(text)
    assert plain(conversion.tokenizer, text) == ids
    assert conversion.tokenizer.encode(text).ids == ours.encode(text)
    assert conversion.tokenizer.decode(ids) == ours.decode(ids)


def test_long_texts_are_one_piece_of_work() -> None:
    """What cuts text for onnxruntime-genai cuts nothing here."""
    ours, conversion = converted("chatglm2")
    for text in ("模型" * 4000, "model " * 3000, "--" * 5000, "é²" * 2000):
        assert plain(conversion.tokenizer, text) == ours.encode_plain(text)


def test_special_tokens_are_read_out_of_texts_as_the_publisher_does() -> None:
    """ChatGLM2 and ChatGLM3 never do; GLM-4 does."""
    for name in ("chatglm2", "chatglm3"):
        ours, conversion = converted(name)
        special: Mapping[str, int] = ours.special
        for token, index in special.items():
            assert index not in plain(conversion.tokenizer, f"{token} philosophy{token}")
            assert plain(conversion.tokenizer, GUARD + token) == [index]
    ours, conversion = converted("glm4_remote")
    assert plain(conversion.tokenizer, "<|user|>") == [ours.special["<|user|>"]]


# -- in transformers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_TOKENIZER)
def test_exported_folder_in_transformers(name: str, exported: Callable[[str], OnnxProgram]) -> None:
    program, golden = exported(name), Golden(name).tokenizer
    ours, theirs = load_tokenizer(program.folder, program.config), AutoTokenizer.from_pretrained(program.folder)
    for case in golden["texts"]:
        assert theirs(case["text"]).input_ids == case["ids"]
        assert theirs.decode(case["ids"], skip_special_tokens=True) == ours.decode(case["ids"])
    for case in golden["chat"]:
        messages = conversation(case)
        assert theirs.apply_chat_template(messages, add_generation_prompt=True) == case["ids"]
        if "ids_with_system" in case:
            prompt = theirs.apply_chat_template([SYSTEM, *messages], add_generation_prompt=True)
            assert prompt == case["ids_with_system"]
    assert theirs.pad_token_id == program.config.pad_token_id
    assert theirs.eos_token_id == program.config.eos_token_ids[0]
    assert theirs.padding_side == "left"


def test_publishers_template_is_kept(exported: Callable[[str], OnnxProgram]) -> None:
    file = "tokenizer_config.json"
    source, found = (
        json.loads((folder / file).read_text()) for folder in (folder_of("glm4_remote"), exported("glm4_remote").folder)
    )
    assert found["chat_template"] == source["chat_template"]
    assert found["added_tokens_decoder"] == source["added_tokens_decoder"]
    assert found["tokenizer_class"] == "PreTrainedTokenizerFast"


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_a_wrong_tokenizer_json_is_noticed() -> None:
    """Two ids exchanged."""
    ours, conversion = converted("chatglm2")
    values = json.loads(conversion.tokenizer.to_str())
    vocabulary = values["model"]["vocab"]
    vocabulary["你"], vocabulary["好"] = vocabulary["好"], vocabulary["你"]
    with pytest.raises(CheckpointError, match="other ids to '你好"):
        check_exact(ours, tokenizers.Tokenizer.from_str(json.dumps(values)), Path("tokenizer.model"))


def _unigram(proto: Any) -> None:
    proto.trainer_spec.model_type = FORMAT.TrainerSpec.UNIGRAM


def _user_defined(proto: Any) -> None:
    proto.pieces[-1].type = FORMAT.ModelProto.SentencePiece.USER_DEFINED


def _blanks_of_their_own(proto: Any) -> None:
    proto.normalizer_spec.escape_whitespaces = False


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_unigram, "should be BPE"),
        (_user_defined, "user-defined"),
        (_blanks_of_their_own, "would give other ids"),
    ],
)
def test_inexact_models_get_no_tokenizer_json(
    change: Callable[[Any], None], reason: str, chatglm2_copy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    proto = FORMAT.ModelProto()
    proto.ParseFromString((chatglm2_copy / "tokenizer.model").read_bytes())
    change(proto)
    (chatglm2_copy / "tokenizer.model").write_bytes(proto.SerializeToString())
    checkpoint = open_checkpoint(chatglm2_copy)
    with pytest.raises(CheckpointError, match=reason):
        convert(chatglm2_copy, checkpoint.config, checkpoint.tokenizer)
    with caplog.at_level(logging.WARNING):
        folder = written(chatglm2_copy, tmp_path / "out")
    assert reason in caplog.text
    assert not (folder / "tokenizer.json").exists()
    assert json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"] == "ChatGLMTokenizer"


def test_files_that_name_special_tokens_otherwise_are_left_behind(chatglm2_copy: Path, tmp_path: Path) -> None:
    """Newer uploads of ChatGLM3 have them; transformers would read "sop" out of "philosophy"."""
    (chatglm2_copy / "special_tokens_map.json").write_text('{"additional_special_tokens": ["[gMASK]", "sop"]}')
    config = json.loads((chatglm2_copy / "tokenizer_config.json").read_text())
    config |= {"additional_special_tokens": ["sop"], "chat_template": "sop{{ messages }}", "model_max_length": 77}
    (chatglm2_copy / "tokenizer_config.json").write_text(json.dumps(config))
    folder = written(chatglm2_copy, tmp_path / "out")
    theirs, (ours, _) = AutoTokenizer.from_pretrained(folder), converted("chatglm2")
    assert theirs("philosophy").input_ids == ours.encode("philosophy")
    assert theirs.model_max_length == 77
    assert not (folder / "special_tokens_map.json").exists()


def test_a_tokenizer_json_of_the_publisher_is_copied(chatglm2_copy: Path, tmp_path: Path) -> None:
    published = '{"added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}'
    (chatglm2_copy / "tokenizer.json").write_text(published)
    folder = written(chatglm2_copy, tmp_path / "out")
    assert (folder / "tokenizer.json").read_text() == published


def test_truncation_and_padding_of_a_trainer_are_not_copied(chatglm2_copy: Path, tmp_path: Path) -> None:
    """Every reader of the exported folder would cut prompts; nothing else of the file changes."""
    _, conversion = converted("chatglm2")
    library = tokenizers.Tokenizer.from_str(conversion.tokenizer.to_str())
    library.enable_truncation(8)
    library.enable_padding(length=64)
    library.save(str(chatglm2_copy / "tokenizer.json"))
    found = json.loads((written(chatglm2_copy, tmp_path / "out") / "tokenizer.json").read_text())
    assert found == json.loads(conversion.tokenizer.to_str()) | {"truncation": None, "padding": None}


def test_stop_ids_of_generation_config_join_the_others(chatglm2_copy: Path, tmp_path: Path) -> None:
    config = open_checkpoint(chatglm2_copy).config
    for named, expected in ((7, {7}), ([9, 0], {9, 0}), (0, {0}), (None, set())):
        (chatglm2_copy / "generation_config.json").write_text(json.dumps({"eos_token_id": named}))
        folder = written(chatglm2_copy, tmp_path / f"out-{named}")
        found = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
        assert set(found) == expected | set(config.eos_token_ids)
