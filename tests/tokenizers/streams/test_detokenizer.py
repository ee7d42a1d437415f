"""Ids to text while they come: together what decoding all of them gives, for every kind of vocabulary."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings, strategies as st
from tokenizers import Tokenizer as Library, decoders

from glm_export.checkpoints.checkpoint import open_checkpoint
from glm_export.embedded import DEMO, DEMO_GLM, FOLDERS
from glm_export.tokenizers import Tokenizer, ends_in_thought, load_tokenizer
from glm_export.tokenizers.conversion import FORMAT, convert
from glm_export.tokenizers.streams import Detokenizer, message_of
from glm_export.tokenizers.streams.runs import PiecesRun, PieceTexts
from tests.helpers.golden_data import Golden
from tests.tokenizers.conftest import write_native
from tests.tokenizers.streams.test_reply_stream import PIECES
from tests.tokenizers.test_added_tokens import ours_of, with_tokens
from tests.tokenizers.test_infilling_vocabularies import bert, gpt2  # noqa: F401 - fixtures
from tests.tokenizers.test_tokenizers import load_native

PUBLISHED = ("chatglm", "chatglm2", "chatglm2_32k", "chatglm3", "glm", "glm4_remote", DEMO, DEMO_GLM)
CONVERTED = ("chatglm2", "chatglm3", "glm4_remote", DEMO)
WITH_ADDED = ("chatglm3", "glm4_remote", "chatglm")
KINDS = [
    *PUBLISHED, *(f"{name} as json" for name in CONVERTED), *(f"{name} with added" for name in WITH_ADDED),
    "native", "unknown decoder", "gpt2", "bert",
]  # fmt: skip
TEXTS = [
    "  你好，世界！ Hello , world .\n\n\ttabs  and   blanks😀\U00020000 é\n", "a", "", " ",
    "it 's n't <n> <|blank_3|> ' x",
]  # fmt: skip


def folder_of(name: str) -> Path:
    return FOLDERS.get(name) or Golden(name).folder


def as_json(name: str, folder: Path) -> Tokenizer:
    """The reader of the ``tokenizer.json`` that an export writes, with nothing beside it."""
    config = open_checkpoint(folder_of(name)).config
    conversion = convert(folder_of(name), config, load_tokenizer(folder_of(name), config))
    conversion.tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(conversion.settings))
    return load_tokenizer(folder, config)


def enlarged(folder: Path) -> Path:
    """ChatGLM-6B with tokens of its own."""
    source = folder_of("chatglm")
    shutil.copy(source / "ice_text.model", folder)
    first = sentencepiece.SentencePieceProcessor(model_file=str(source / "ice_text.model")).vocab_size()
    added = {str(first + place): {"content": text} for place, text in enumerate(("<shown>", "<also shown>"))}
    settings = json.loads((source / "tokenizer_config.json").read_text()) | {"added_tokens_decoder": added}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(params=KINDS, scope="module")
def reader(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    name, _, how = request.param.partition(" ")
    folder = tmp_path_factory.mktemp("tokenizer")
    if how == "as json":
        return as_json(name, folder)
    if how == "with added":
        return ours_of(with_tokens(name, folder) if name != "chatglm" else enlarged(folder), name)
    if name in {"gpt2", "bert"}:
        return request.getfixturevalue(name)[0]
    if name in PUBLISHED:
        return load_tokenizer(folder_of(name), open_checkpoint(folder_of(name)).config)
    write_native(folder)
    if how == "decoder":
        library = Library.from_file(str(folder / "tokenizer.json"))
        library.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("h", "H")])
        library.save(str(folder / "tokenizer.json"))
    return load_native(folder)


def size_of(tokenizer: Any) -> int:
    """One past the largest id that means something."""
    return max([*getattr(tokenizer, "special", {}).values(), *tokenizer.encode("a b 你好"), 400]) + 12


def streamed(detokenizer: Detokenizer, ids: Sequence[int], parts: int = 1) -> str:
    fed = [detokenizer.feed(ids[at : at + parts]) for at in range(0, len(ids), parts)]
    return "".join(fed) + detokenizer.finish()


def test_texts_come_back(reader: Tokenizer) -> None:
    for text in (*TEXTS, *PIECES):
        for ids in (reader.encode(text), reader.encode_plain(text)):
            for parts in (1, 3):
                assert streamed(reader.detokenizer(), ids, parts) == reader.decode(ids)


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_ids(reader: Tokenizer, data: st.DataObject) -> None:
    """With characters cut anywhere, ids that no vocabulary has, and special tokens among them."""
    bytes_of_characters = reader.encode_plain("\U00020000é😀 ")
    index = st.integers(-2, size_of(reader)) | st.sampled_from(bytes_of_characters)
    ids = data.draw(st.lists(index, max_size=24))
    assert streamed(reader.detokenizer(), ids, data.draw(st.integers(1, 4))) == reader.decode(ids)
    stream = reader.reply_stream([])
    deltas = [delta for index in ids for delta in stream.feed_ids([index])]
    assert message_of([*deltas, *stream.finish()]) == reader.parse_reply(ids, [], thinking=False)


def test_runs_without_text_beside_added_tokens(reader: Any) -> None:
    """Where decode puts blanks around tokens, it does so around nothing as well."""
    shown = list(getattr(reader, "_shown", {}))[:1]
    nothing, hidden = [10**6], list(getattr(reader, "special", {}).values())[:1]
    for ids in ([*shown, *nothing], [*nothing, *shown], [*shown, *hidden, *nothing, *shown], [*shown, *hidden]):
        assert streamed(reader.detokenizer(), ids) == reader.decode(ids)


def test_special_tokens_say_where_turns_end(reader: Tokenizer) -> None:
    ids = reader.encode_plain('f\n{"a": 1}')
    roles: dict[str, int] = getattr(reader, "special", {})
    if "<|assistant|>" in roles:
        ids = [*ids, roles["<|assistant|>"], *ids, roles["<|observation|>"], *ids]
    stream = reader.reply_stream()
    assert message_of([*stream.feed_ids(ids), *stream.finish()]) == reader.parse_reply(ids)


@pytest.mark.parametrize("name", ["chatglm3", "glm4_remote", DEMO])
def test_characters_come_when_they_are_whole(name: str) -> None:
    tokenizer = load_tokenizer(folder_of(name), open_checkpoint(folder_of(name)).config)
    ids = tokenizer.encode_plain("你 a 😀, b\U00020000 \n")
    detokenizer, text = tokenizer.detokenizer(), ""
    for place, index in enumerate(ids, 1):
        text += detokenizer.feed([index])
        assert text == tokenizer.decode(ids[:place]).rstrip("\ufffd")
    assert detokenizer.finish() == ""


def test_a_whole_decode_of_each_id_is_not_the_text() -> None:
    """The control."""
    tokenizer = load_tokenizer(folder_of("glm4_remote"), open_checkpoint(folder_of("glm4_remote")).config)
    ids = tokenizer.encode_plain("😀")
    assert len(ids) > 1
    assert "".join(tokenizer.decode([index]) for index in ids) != tokenizer.decode(ids) == "😀"


@pytest.mark.parametrize("add_dummy_prefix", [False, True])
@pytest.mark.parametrize("remove_extra_whitespaces", [False, True])
@given(ids=st.lists(st.integers(0, 359), max_size=20))
@settings(max_examples=60, deadline=None)
def test_sentencepiece_models_of_every_kind(
    ids: list[int], *, add_dummy_prefix: bool, remove_extra_whitespaces: bool
) -> None:
    library = model_of(add_dummy_prefix=add_dummy_prefix, remove_extra_whitespaces=remove_extra_whitespaces)
    run = PiecesRun(PieceTexts(library))
    text = "".join(map(run.feed, ids)) + run.finish()
    assert text == library.decode(ids)


def model_of(**normalizer: bool) -> Any:
    proto = FORMAT.ModelProto()
    proto.ParseFromString((folder_of("chatglm2") / "tokenizer.model").read_bytes())
    for name, value in normalizer.items():
        setattr(proto.normalizer_spec, name, value)
    return sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())


def test_a_prompt_that_ends_in_thought(native_folder: Path) -> None:
    tokenizer = load_native(native_folder)
    for text, expected in (("<think>", True), ("<think> \n", True), ("<think>\n\n</think>", False), ("", False)):
        assert ends_in_thought(tokenizer, tokenizer.encode(f"ask me<|assistant|>{text}")) is expected
