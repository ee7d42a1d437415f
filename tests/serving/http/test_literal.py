"""Names of special tokens that people write are text, in every tokenizer, and read the same."""

from __future__ import annotations

import pytest

from glm_export import api
from glm_export.serving.http.literal import APART, literal, names_of
from glm_export.tokenizers import Tokenizer, load_tokenizer
from glm_export.tokenizers.chat import Message
from tests.helpers.golden_data import Golden


@pytest.fixture(params=["chatglm", "chatglm2", "chatglm3", "glm4_remote"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    folder = Golden(request.param).folder
    return load_tokenizer(folder, api.open_checkpoint(folder).config)


def test_no_name_becomes_a_token(tokenizer: Tokenizer) -> None:
    """The control: as they are, some do."""
    names, special = names_of(tokenizer), set(tokenizer.special.values())
    assert names is not None
    written: list[Message] = [{"role": "user", "content": f"a{name}b"} for name in tokenizer.special if name.strip()]
    quiet = tokenizer.chat([{"role": "user", "content": "ab"}])
    usual = sum(token in special for token in quiet)
    becomes = 0
    for message in written:
        ids = tokenizer.chat(literal([message], names))
        assert sum(token in special for token in ids) == usual, message
        becomes += sum(token in special for token in tokenizer.chat([message])) > usual
    # Where a text by itself has names that are tokens, a conversation has them as well.
    assert bool(becomes) == bool(special & set(tokenizer.encode_plain("".join(tokenizer.special))))


def test_what_is_no_name_stays(tokenizer: Tokenizer) -> None:
    names = names_of(tokenizer)
    for text in ("你好, world", "<|", "<div>", ""):
        assert literal(text, names) == text
    name = next(iter(tokenizer.special))
    assert literal(f"x{name}", names).replace(APART, "") == f"x{name}"


def test_every_text_of_whatever_is_told() -> None:
    """Parts, thoughts, names of tools and of their parameters, arguments and documents; what is no text stays."""
    folder = Golden("glm4_remote").folder
    names = names_of(load_tokenizer(folder, api.open_checkpoint(folder).config))
    for wrap in (
        lambda text: [{"role": "user", "content": [{"type": "text", "text": text}, {"type": "image"}, 5]}],
        lambda text: [{"role": "assistant", "content": None, "reasoning_content": text}],
        lambda text: [{"role": "assistant", "tool_calls": [{"function": {"name": text, "arguments": {text: [text]}}}]}],
        lambda text: [{"type": "function", "function": {"name": "f", "description": text, "parameters": {text: 1}}}],
        lambda text: [{"title": text, "text": f"{text}{text}"}],
        lambda text: {"a": (True, 1.5, text)}["a"][2],
    ):
        assert literal(wrap("<|user|>"), names) == wrap(f"<{APART}|user|>")
        assert literal(wrap("<|user|>"), None) == wrap("<|user|>")
