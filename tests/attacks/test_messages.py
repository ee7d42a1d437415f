"""A message is one short line, whatever an input puts into it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from glm_export.checkpoints.checkpoint import open_checkpoint
from glm_export.errors import MESSAGE_CHARACTERS, GlmExportError, InputError, shown
from tests.helpers.tiny import random_tensors, tiny_values, write_checkpoint

HOSTILE = {
    "a line break": "a\nb",
    "a terminal's escape": "\x1b[31mred\x1b]0;title\x07",
    "a separator of lines": "a\u2028b\x85c",
    "writing from right to left": "\u202ecba",
    "half a character": "\ud800",
    "10 kB": "x" * 10_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_errors_and_quoted_values(name: str) -> None:
    text = HOSTILE[name]
    for message in (str(InputError(f"found {text}; rename it")), shown(text), shown({"key": [text]})):
        assert message.isprintable()
        assert len(message) <= MESSAGE_CHARACTERS
    # What to do stands at the end, and stays.
    assert str(InputError(f"found {text}; rename it")).endswith("; rename it")


def test_other_writing_stays_as_it_is() -> None:
    assert str(InputError("模型 «é» 😀")) == "模型 «é» 😀"


@pytest.mark.parametrize("name", [name for name in HOSTILE if name != "half a character"])
def test_values_keys_and_names_of_a_checkpoint(name: str, tmp_path: Path) -> None:
    text, values = HOSTILE[name], tiny_values("glm4")
    changed = [
        values | {"model_type": text},
        values | {"hidden_act": text},
        values | {text: 1},
        values | {"rope_theta": text},
    ]
    for number, config in enumerate(changed):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(GlmExportError) as error:
            open_checkpoint(folder)
        assert str(error.value).isprintable()
        assert len(str(error.value)) <= MESSAGE_CHARACTERS
    tensors = random_tensors(values)
    tensors[text] = tensors.pop("model.norm.weight")
    write_checkpoint(tmp_path / "weights", values, tensors)
    with pytest.raises(GlmExportError, match=r"model\.norm\.weight") as error:
        open_checkpoint(tmp_path / "weights").audit()
    assert str(error.value).isprintable()
    assert len(str(error.value)) <= MESSAGE_CHARACTERS
