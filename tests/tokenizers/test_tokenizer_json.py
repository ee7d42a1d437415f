"""A ``tokenizer.json`` that is read, and breaks when it is used; and ids that no vocabulary has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from glm_export.errors import CheckpointError
from glm_export.tokenizers.tokenizer_json import JsonTokenizer
from tests.attacks.readers import readers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound one, converted from GLM-4's ranks."""
    return readers(tmp_path)["tokenizer.json"].sound


def test_a_prefix_of_tokens_that_are_not_there(folder: Path) -> None:
    """The library panics, which is no ``Exception``; found by the guided attack."""
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text())
    del values["post_processor"]["special_tokens"]["[gMASK]"]
    path.write_text(json.dumps(values))
    tokenizer = JsonTokenizer(folder, "glm")
    with pytest.raises(CheckpointError, match=r"is no tokenizer\.json that works: .*; download it again"):
        tokenizer.encode("a")
    assert tokenizer.encode_plain("a")


def test_ids_that_no_vocabulary_has(folder: Path) -> None:
    tokenizer = JsonTokenizer(folder, "glm")
    ids = tokenizer.encode_plain("a b")
    assert tokenizer.decode([-1, *ids, 10**6, 1 << 40]) == tokenizer.decode(ids) == "a b"
