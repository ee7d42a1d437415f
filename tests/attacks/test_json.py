"""The one JSON reader: bounded, and of one opinion on what JSON leaves open."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from glm_export.errors import CheckpointError
from glm_export.model_folder import JSON_BYTES, load_json, parse_json, read_json

REFUSED = {
    "NaN": (b'{"a": NaN}', "NaN, which is no number"),
    "infinity": (b'{"a": [-Infinity]}', "-Infinity, which is no number"),
    "overflow": (b'{"a": 1e999}', "larger than numbers are"),
    "200 digits": (b'{"a": ' + b"7" * 200 + b"}", "more than 100 digits"),
    "5000 digits": (b'{"a": ' + b"7" * 5000 + b"}", "more than 100 digits"),
    "two values of a key": (b'{"a": 1, "a": 2}', "says both 1 and 2 of 'a'"),
    "half a character": (b'{"a": "\\ud800"}', "half of a surrogate pair"),
    "half a character in a key": (b'{"\\udfff": 1}', "half of a surrogate pair"),
    "no UTF-8": (b'{"a": "\xff"}', "codec can't decode"),
    "100,000 levels": (b"[" * 100_000, "nested deeper than 64"),
    "65 levels": (b'{"a": ' * 65 + b"1" + b"}" * 65, "nested deeper than 64"),
    "cut short": (b'{"a": ', "Expecting value"),
    "empty": (b"", "Expecting value"),
}
TAKEN = {
    "byte order mark": (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
    "one value twice": (b'{"a": 1, "a": 1}', {"a": 1}),
    "a pair": (b'{"a": "\\ud83d\\ude00"}', {"a": "\U0001f600"}),
    "model_max_length of transformers": (b'{"a": 1000000000000000019884624838656}', {"a": int(1e30)}),
    "64 levels": (b"[" * 64 + b"]" * 64, None),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_json_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    data, reason = REFUSED[name]
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(CheckpointError) as error:
        read_json(tmp_path, "config.json")
    assert reason in str(error.value)
    assert str(error.value).endswith("download it again")


@pytest.mark.parametrize("name", TAKEN)
def test_what_others_write_is_taken(name: str) -> None:
    data, expected = TAKEN[name]
    found = parse_json(data)
    assert expected is None or found == expected


def test_half_a_character_in_text_is_refused() -> None:
    with pytest.raises(ValueError, match="surrogate"):
        parse_json('{"a": "\udc80"}')


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(JSON_BYTES + 1)
    with pytest.raises(ValueError, match="more than 32 MiB"):
        load_json(path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="no ordinary file"):
        read_json(tmp_path, "config.json")


def test_a_device_is_not_read() -> None:
    with pytest.raises(ValueError, match="no ordinary file"):
        load_json(Path("/dev/zero"))
