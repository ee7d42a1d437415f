"""What may be asked of an export: the usual, keywords and records alike, and what is refused."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import get_args

import pytest

from glm_export import api
from glm_export.calibration import recipes
from glm_export.errors import InputError
from glm_export.exporter.options import ExportOptions, resolve_options
from glm_export.graphs import dialects
from tests.helpers.golden_data import Golden

CONFIG = api.open_checkpoint(Golden("chatglm2").folder).config


def test_the_usual() -> None:
    assert asdict(ExportOptions()) == {
        "dialect": "onnx", "dtype": "float32", "recipe": None, "ranges": None, "logits": None, "max_length": None,
        "block_size": None, "head_bits": None, "prefill_memory": None, "kv_cache_dtype": None,
        "hidden_states": None, "excluded": None,
    }  # fmt: skip
    usual = resolve_options(CONFIG)
    assert (usual.dialect.name, usual.dtype, usual.logits, usual.recipe) == ("onnx", "float32", "all", None)


def test_type_checkers_know_every_name() -> None:
    assert sorted(get_args(dialects.DialectName)) == dialects.names()
    assert sorted(get_args(recipes.RecipeName)) == sorted([*recipes.names(), recipes.KEEP])


def test_a_record_and_keywords_say_the_same() -> None:
    asked = ExportOptions(dialect="tensorrt", dtype="float16", max_length=64, logits="last")
    by_record = resolve_options(CONFIG, asked)
    assert by_record == resolve_options(CONFIG, dialect="tensorrt", dtype="float16", max_length=64, logits="last")
    assert resolve_options(CONFIG, asked, max_length=32) == resolve_options(CONFIG, replace(asked, max_length=32))
    assert by_record != resolve_options(CONFIG, asked, max_length=32)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (ExportOptions(dialect="french"), "dialect 'french' is unknown; known dialects: onnx, ort"),
        (ExportOptions(dtype="int8"), "dtype 'int8' is unknown; known: float32, float16, bfloat16"),
        (ExportOptions(logits="some"), "logits 'some' is unknown; known: all, last, recent"),
        (ExportOptions(recipe="int3"), "recipe 'int3' is unknown; known recipes: fp8"),
        (ExportOptions(max_length=64), "dialect onnx has no cache of fixed size; leave --max-length out"),
        (ExportOptions(dialect="tensorrt", max_length=10**9), "--max-length must be 1 to .* found 1000000000"),
        (ExportOptions(recipe="int8-static"), "recipe int8-static needs .* give --ranges"),
        (ExportOptions(ranges="nowhere"), "nowhere holds no ranges.json"),
    ],
)
def test_what_cannot_be_is_refused(asked: ExportOptions, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve_options(CONFIG, asked)


def test_an_unknown_name_is_refused_before_anything_is_opened(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="no option 'dialekt'; known: dialect, dtype, recipe, ranges, logits"):
        api.export(tmp_path / "nowhere", tmp_path / "out", dialekt="ort")  # type: ignore[call-arg]


def test_an_export_takes_both_and_keywords_go_first(tmp_path: Path) -> None:
    asked = ExportOptions(dialect="portable", dtype="float16")
    program = api.export(Golden("chatglm2").folder, tmp_path / "out", asked, dtype="float32")
    assert (program.dialect, program.dtype) == ("portable", "float32")
