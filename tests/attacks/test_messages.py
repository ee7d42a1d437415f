"""A message is one short line, whatever an input puts into it."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import pytest
from rich.table import Table

from glm_export.checkpoints.checkpoint import open_checkpoint
from glm_export.errors import MESSAGE_CHARACTERS, GlmExportError, InputError, listed, reason, shown
from glm_export.terminal.console import PlainConsole
from glm_export.terminal.frame.saying import Remarks
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


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("int3", "'int3'"),
        (None, "nothing"),
        (True, "true"),
        (2.5, "2.5"),
        (Path("a/b"), "'a/b'"),
        (["a", 2, None], "a list of 'a', 2, nothing"),
        ((4, 8), "a list of 4, 8"),
        ([[1, 2], []], "a list of [1, 2], []"),
        ([], "an empty list"),
        (frozenset({"b", "a"}), "a set of 'a', 'b'"),
        ({"a": [True, None]}, '{"a": [true, null]}'),
    ],
)
def test_values_are_words_and_not_python(value: object, told: str) -> None:
    assert shown(value) == told


def test_lists_and_reasons_are_words() -> None:
    assert (listed(["a", "b"]), listed([4, 8]), listed([])) == ("'a', 'b'", "4, 8", "none")
    assert reason(KeyError("memory", "plan")) == "it has no 'memory', 'plan'"
    assert (reason(ValueError("it is short")), reason(ValueError())) == ("it is short", "ValueError")
    # What never ends is cut as anything else.
    endless: list[object] = []
    endless.append(endless)
    assert len(shown(endless)) <= 80


def test_what_is_printed_acts_on_no_terminal() -> None:
    """Texts of many lines stay so."""
    console = PlainConsole(file=io.StringIO(), width=400)
    table = Table()
    table.add_row("\x1b[31mred\x07", "一\u3000二 👨\u200d👩")
    console.print("a\nb\x1b]0;title\x07\u202ec")
    console.print(table)
    written = console.file.getvalue()
    assert "a\nb\\x1b]0;title\\x07\\u202ec" in written
    assert "\\x1b[31mred\\x07" in written
    assert "一\u3000二 👨\u200d👩" in written
    assert not set("\x1b\x07\u202e") & set(written)


def test_warnings_are_one_line() -> None:
    record = logging.LogRecord(
        "glm_export", logging.WARNING, "", 1, "%s is %s", ("a\nb", "\x1b[31m" + "x" * 9000), None
    )
    line = Remarks().format(record)
    assert line.startswith("a\\nb is \\x1b[31mxx")
    assert len(line) <= MESSAGE_CHARACTERS


def test_notes_of_a_checkpoint_are_lines(tmp_path: Path) -> None:
    values = tiny_values("glm4")
    tensors = {f"a\nb\x1b[31m.{name}": tensor for name, tensor in random_tensors(values).items()}
    write_checkpoint(tmp_path, values, tensors)
    notes = open_checkpoint(tmp_path).notes
    assert any("prefix" in note for note in notes)
    assert all(note.isprintable() for note in notes)


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
