"""Every text and chat of the golden files; ``tokenizer.json`` against transformers; templates in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Library
from transformers import PreTrainedTokenizerFast

from glm_export import families
from glm_export.checkpoints.checkpoint import open_checkpoint
from glm_export.errors import CheckpointError, InputError
from glm_export.tokenizers import Tokenizer, load_tokenizer, stop_ids
from glm_export.tokenizers.chat import Message
from tests.helpers.golden_data import WITH_TOKENIZER, Golden
from tests.helpers.tiny import tiny_values
from tests.tokenizers.conftest import SPECIALS, TEMPLATE

TEXTS = ["你好，世界！", "Hello, world!", "  two  spaces\n\nand lines\t", "1234567890", "", "<|user|> inside", "😀"]
CHAT: list[Message] = [
    {"role": "system", "content": "You are GLM."},
    {"role": "user", "content": "你好"},
    {"role": "assistant", "content": "hi"},
    {"role": "user", "content": "1+1=?"},
]


def load(name: str) -> Tokenizer:
    return load_tokenizer(Golden(name).folder, open_checkpoint(Golden(name).folder).config)


def conversation(case: dict[str, object]) -> list[Message]:
    messages: list[Message] = []
    for question, answer in case["history"]:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return [*messages, {"role": "user", "content": str(case["query"])}]


@pytest.mark.parametrize("name", WITH_TOKENIZER)
def test_every_golden_text(name: str) -> None:
    tokenizer, texts = load(name), Golden(name).tokenizer["texts"]
    assert len(texts) >= 20
    for case in texts:
        assert tokenizer.encode(case["text"]) == case["ids"]
        assert tokenizer.encode_plain(case["text"]) == case["ids_plain"]
        expected = case["decoded_skip_special" if name == "glm4_remote" else "decoded_plain"]
        assert tokenizer.decode(case["ids"]) == expected


@pytest.mark.parametrize("name", WITH_TOKENIZER)
def test_every_golden_chat(name: str) -> None:
    tokenizer, cases = load(name), Golden(name).tokenizer["chat"]
    assert cases
    for case in cases:
        assert tokenizer.chat(conversation(case)) == case["ids"]
        if "ids_with_system" in case:
            system: Message = {"role": "system", "content": "You are GLM."}
            assert tokenizer.chat([system, *conversation(case)]) == case["ids_with_system"]


@pytest.mark.parametrize("name", WITH_TOKENIZER)
def test_special_ids_and_stop_ids(name: str) -> None:
    tokenizer, golden = load(name), Golden(name).tokenizer
    special: Mapping[str, int] = tokenizer.special
    assert special == {token: golden["special"][token] for token in special}
    config = open_checkpoint(Golden(name).folder).config
    expected = {"chatglm3": {golden["eos_token_id"], special.get("<|user|>"), special.get("<|observation|>")}}
    assert set(stop_ids(config, tokenizer)) == expected.get(name, set(config.eos_token_ids))


def test_ids_beyond_the_pieces_decode_to_nothing() -> None:
    """Embeddings are padded; the official code raises IndexError there."""
    tokenizer = load("chatglm2")
    ids = tokenizer.encode_plain("你好")
    assert tokenizer.decode([*ids, 383, 366, 364]) == "你好"


def test_rounds_need_turns() -> None:
    with pytest.raises(InputError, match="in turns"):
        load("chatglm2").chat([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])
    with pytest.raises(InputError, match="system"):
        load("chatglm2").chat([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}])
    with pytest.raises(InputError, match="at least one"):
        load("chatglm3").chat([])


@pytest.mark.parametrize("name", ["chatglm2", "glm4_remote"])
def test_damaged_file_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\x00garbage")
    with pytest.raises(CheckpointError, match=r"tokenizer\.model"):
        load_tokenizer(tmp_path, open_checkpoint(Golden(name).folder).config)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.model"):
        load_tokenizer(tmp_path, open_checkpoint(Golden("chatglm2").folder).config)


# -- tokenizer.json ----------------------------------------------------------------------------------------------------


def load_native(folder: Path) -> Tokenizer:
    return load_tokenizer(folder, families.read_config(tiny_values("glm4")))


def test_tokenizer_json_equals_transformers(native_folder: Path) -> None:
    ours = load_native(native_folder)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(native_folder / "tokenizer.json"), chat_template=TEMPLATE)
    for text in TEXTS:
        assert ours.encode(text) == theirs(text).input_ids
        assert ours.encode_plain(text) == theirs(text, add_special_tokens=False).input_ids
        ids = ours.encode(text)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert ours.chat(CHAT) == theirs.apply_chat_template(CHAT, add_generation_prompt=True)


def test_template_may_lie_in_a_file_of_its_own(native_folder: Path) -> None:
    (native_folder / "tokenizer_config.json").unlink()
    without = load_native(native_folder).chat(CHAT)
    (native_folder / "chat_template.jinja").write_text(TEMPLATE)
    assert load_native(native_folder).chat(CHAT) != without
    # Without any template, the prompt is GLM-4's.
    tokenizer = load_native(native_folder)
    text = "".join(f"<|{m['role']}|>\n{m['content']}" for m in CHAT)
    assert without == tokenizer.encode_plain(f"[gMASK]<sop>{text}<|assistant|>")


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception('no') }}",
        "{% include '/etc/passwd' %}",
        "{{ unclosed",
        "{% for i in range(10**9) %}x{% endfor %}",
    ],
)
def test_hostile_templates_end_in_one_line(native_folder: Path, template: str) -> None:
    (native_folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    with pytest.raises(InputError, match="chat template"):
        load_native(native_folder).chat(CHAT)


def test_stop_ids_of_tokenizer_json(native_folder: Path) -> None:
    tokenizer = load_native(native_folder)
    first = 256 + 3
    expected = (first + SPECIALS.index(token) for token in ("<|endoftext|>", "<|user|>", "<|observation|>"))
    assert tokenizer.stop_ids == tuple(expected)


def test_what_a_trainer_set_is_off(native_folder: Path) -> None:
    """``save_pretrained`` after training writes truncation and padding; transformers ignores both in a plain call."""
    text = "hell " * 30
    expected = load_native(native_folder).encode(text)
    library = Library.from_file(str(native_folder / "tokenizer.json"))
    library.enable_truncation(16)
    library.enable_padding(length=300)
    library.save(str(native_folder / "tokenizer.json"))
    assert len(Library.from_file(str(native_folder / "tokenizer.json")).encode(text).ids) == 300  # it would be
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(native_folder / "tokenizer.json"))
    assert load_native(native_folder).encode(text) == expected == theirs(text).input_ids


# -- texts no tokenizer can read ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["chatglm2", "chatglm3", "glm4_remote", "chatglm", "glm"])
@pytest.mark.parametrize("text", ["ab\ud800c", b"caf\xe9".decode(errors="surrogateescape")])
def test_lone_surrogates_are_refused(name: str, text: str) -> None:
    """Half of a pair, and a byte of Latin-1 as a terminal hands it over."""
    for encode in (load(name).encode, load(name).encode_plain):
        with pytest.raises(InputError, match=r"lone surrogate \(U\+D[0-9A-F]{3}\) at character [23]"):
            encode(text)


@pytest.mark.parametrize("name", ["chatglm2", "chatglm3", "glm4_remote", "chatglm"])
def test_lone_surrogates_are_refused_in_conversations(name: str) -> None:
    """By prompts built in and by templates, whose process they must reach and leave."""
    with pytest.raises(InputError, match="lone surrogate"):
        load(name).chat([{"role": "user", "content": "a\ud83d"}])


def test_lone_surrogates_are_refused_by_tokenizer_json(native_folder: Path) -> None:
    tokenizer = load_native(native_folder)
    for encode in (tokenizer.encode, tokenizer.encode_plain):
        with pytest.raises(InputError, match="lone surrogate"):
            encode("\udfff")


@pytest.mark.parametrize("after", ["", "x"])
def test_a_million_blanks_are_refused_in_one_line(after: str) -> None:
    with pytest.raises(InputError, match="run of blanks that is too long") as raised:
        load("glm4_remote").encode(" " * 1_000_000 + after)
    assert "\n" not in str(raised.value)
    assert len(load("glm4_remote").encode(" " * 10_000 + after)) > 2


def test_a_panic_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """As releases of tiktoken before fancy-regex's errors were handed over: outside Exception."""

    class PanicException(BaseException):
        pass

    def panic(*_: object, **__: object) -> list[int]:
        raise PanicException("called `Result::unwrap()` on an `Err` value: StackOverflow")

    tokenizer = load("glm4_remote")
    monkeypatch.setattr(tokenizer, "_encoding", type("Stub", (), {"encode_ordinary": panic})())
    with pytest.raises(InputError, match="StackOverflow"):
        tokenizer.encode("x")


def test_an_interrupt_goes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> list[int]:
        raise KeyboardInterrupt

    tokenizer = load("glm4_remote")
    monkeypatch.setattr(tokenizer, "_encoding", type("Stub", (), {"encode_ordinary": interrupt})())
    with pytest.raises(KeyboardInterrupt):
        tokenizer.encode("x")


def test_tokens_that_only_the_config_adds(native_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """transformers adds them to tokenizer.json's, which numbers them."""
    size = Library.from_file(str(native_folder / "tokenizer.json")).get_vocab_size()
    flags = {"lstrip": True, "rstrip": False, "normalized": False, "single_word": False}
    added = {
        str(size): {"content": "<tool>", "special": True} | flags,
        "9999": {"content": "<shown>", "special": False} | flags,
    }
    config = {"added_tokens_decoder": added, "tokenizer_class": "PreTrainedTokenizerFast"}
    (native_folder / "tokenizer_config.json").write_text(json.dumps(config))
    ours, theirs = load_native(native_folder), PreTrainedTokenizerFast.from_pretrained(native_folder)
    text = "he  <tool> ll <shown>"
    ids = theirs(text).input_ids
    assert ours.encode(text) == ids
    assert {size, size + 1} <= set(ids)
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert f"<shown> 9999 in tokenizer_config.json and {size + 1} in tokenizer.json" in caplog.text
