"""Names of special tokens that people write are text, in every tokenizer, and read the same."""

from __future__ import annotations

import pytest

from glm_export import api
from glm_export.serving.http.literal import APART, literal, literal_text, names_of
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
    # Where the prompt is written part by part, no text is read for names.
    assert (
        becomes
        or not tokenizer.encode_plain("".join(tokenizer.special))
        or not special & set(tokenizer.encode_plain("".join(tokenizer.special)))
    )


def test_what_is_no_name_stays(tokenizer: Tokenizer) -> None:
    names = names_of(tokenizer)
    for text in ("你好, world", "<|", "<div>", ""):
        assert literal_text(text, names) == text
    name = next(iter(tokenizer.special))
    assert literal_text(f"x{name}", names).replace(APART, "") == f"x{name}"


def test_parts_and_other_things() -> None:
    names = names_of(
        load_tokenizer(Golden("glm4_remote").folder, api.open_checkpoint(Golden("glm4_remote").folder).config)
    )
    parts = [{"type": "text", "text": "<|user|>"}, {"type": "image"}, 5]
    found = literal([{"role": "user", "content": parts}, {"role": "assistant", "content": None}, "no message"], names)
    assert found[0]["content"] == [{"type": "text", "text": f"<{APART}|user|>"}, {"type": "image"}, 5]
    thought = literal([{"role": "assistant", "content": "x", "reasoning_content": "<|user|>"}], names)
    assert thought[0]["reasoning_content"] == f"<{APART}|user|>"
    assert found[1:] == [{"role": "assistant", "content": None}, "no message"]
