"""Options said once: every record of them, its keywords, its docstring, and what is refused."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass, field, fields
from typing import Any

import pytest

from glm_export import api
from glm_export.calibration.options import CalibrationKeywords, CalibrationOptions, TextKeywords, TextOptions
from glm_export.deployment.build import build
from glm_export.deployment.request import BuildKeywords, BuildRequest
from glm_export.errors import InputError
from glm_export.evaluation.options import QualityKeywords, QualityOptions
from glm_export.exporter import export as exporter
from glm_export.exporter.options import ExportKeywords, ExportOptions, resolve_options
from glm_export.performance.bench import bench
from glm_export.performance.report import BenchKeywords, BenchOptions
from glm_export.spec.option import described, flag, listed, merged, options_of, require_known

NAMES = re.compile(r"DialectName|DTypeName|(recipes\.)?RecipeName|LogitsKind|KvCacheDtype|HiddenStatesKind|\bDevice\b")
RECORDS = [
    (ExportOptions, ExportKeywords),
    (TextOptions, TextKeywords),
    (CalibrationOptions, CalibrationKeywords),
    (QualityOptions, QualityKeywords),
    (BuildRequest, BuildKeywords),
    (BenchOptions, BenchKeywords),
]


@listed
@dataclass(frozen=True, slots=True, kw_only=True)
class Tea:
    """A cup."""

    leaf: str = field(default="green", metadata=described("What is brewed.", choices=("green", "black"), flag="kind"))
    steeped_s: int = field(default=90, metadata=described("How long.", least=1))
    sugar: str | None = field(default=None, metadata=described("How sweet.", choices=lambda: ["half", "full"]))
    milk: bool = field(default=False, metadata=described("A drop."))
    guests: tuple[str, ...] = ()


@pytest.mark.parametrize(("record", "keywords"), RECORDS, ids=lambda one: one.__name__)
def test_keywords_are_the_fields(record: type, keywords: Any) -> None:
    """Name by name and type by type: Python has no way to make one of the other.

    Of names that there are only some of, keywords say which; a record takes any, and is seen to later.
    """
    typed = {one.name: one.type for one in fields(record)}
    if record is BuildRequest:  # they are arguments of their own
        assert (typed.pop("source"), typed.pop("out")) == ("str | Path | Checkpoint", "Path")
    said = {name: NAMES.sub("str", value.__forward_arg__) for name, value in keywords.__annotations__.items()}
    assert said == typed
    assert not keywords.__required_keys__


@pytest.mark.parametrize(
    ("record", "verb"),
    [
        (ExportOptions, api.export), (ExportOptions, exporter.export), (ExportOptions, resolve_options),
        (CalibrationOptions, api.calibrate), (QualityOptions, api.quality), (BuildRequest, build),
        (BenchOptions, bench), (Tea, Tea),
    ],
)  # fmt: skip
def test_docstrings_list_every_option_with_its_text(record: type, verb: Any) -> None:
    for documented in (record, verb):
        listing = documented.__doc__.split("\n\nOptions:\n")[1].splitlines()
        assert len(listing) == len(options_of(record))
        for line, (name, (_, option)) in zip(listing, options_of(record).items(), strict=True):
            assert line.startswith(f"    {name}: {option.help}")


def test_a_docstring_names_choices_and_defaults() -> None:
    assert str(Tea.__doc__).splitlines() == [
        "A cup.",
        "",
        "Options:",
        "    leaf: What is brewed. One of green, black. Default: green.",
        "    steeped_s: How long. Default: 90.",
        "    sugar: How sweet. One of half, full.",
        "    milk: A drop.",
    ]


def test_a_flag_is_what_a_person_types() -> None:
    assert (flag(Tea, "leaf"), flag(Tea, "steeped_s")) == ("--kind", "--steeped-s")
    with pytest.raises(KeyError):
        flag(Tea, "guests")


def test_merged() -> None:
    given = Tea(leaf="black", steeped_s=30)
    assert merged(Tea, None, {}) == Tea()
    assert merged(Tea, given, {}) == given
    assert merged(Tea, given, {"steeped_s": 60}) == Tea(leaf="black", steeped_s=60)
    with pytest.raises(TypeError, match=r"no option 'leave'; known: leaf, steeped_s, sugar, milk, guests"):
        merged(Tea, given, {"leave": "black"})


def test_require_known() -> None:
    require_known(Tea(), "leaf", "sugar")
    with pytest.raises(InputError, match=r"^kind 'white' is unknown; known: green, black$"):
        require_known(Tea(leaf="white"), "leaf")
    with pytest.raises(InputError, match=r"^sugar 'none' is unknown; known: half, full$"):
        require_known(Tea(sugar="none"), "sugar")
    require_known(Tea(leaf="white"), "sugar")


def test_reading_the_options_loads_neither_torch_nor_onnx() -> None:
    modules = sorted({record.__module__ for record, _ in RECORDS} | {"glm_export.engines.options"})
    script = (
        f"import sys, importlib\nfor name in {modules!r}: importlib.import_module(name)\n"
        "sys.exit(', '.join({'torch', 'onnx', 'onnxruntime', 'polygraphy', 'numpy'} & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
