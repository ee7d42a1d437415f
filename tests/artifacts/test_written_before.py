"""Folders that an earlier version wrote load, prove equal and calibrate as they did: see ``golden/README.md``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from glm_export import api
from glm_export.artifacts.engine import load_engine
from glm_export.artifacts.manifest import ENGINE_MANIFEST
from glm_export.artifacts.open import Kind, open_artifact
from glm_export.artifacts.program import WEIGHTS
from glm_export.deployment.inspect import inspect_folder
from glm_export.errors import EnvironmentMissingError
from glm_export.sessions.onnxruntime.saturation import adds_in_16_bits
from glm_export.spec.signature import Cache
from tests.helpers.golden_data import GOLDEN

BEFORE = GOLDEN / "written_before"
CHECKPOINT = BEFORE / "checkpoint"
PROGRAMS = {
    "onnx": ("onnx", None, Cache.GROWING),
    "ort-int4": ("ort", "int4-int8-prompt", Cache.SHARED),
    "onnx-int8-kv": ("onnx", "int8-kv", Cache.GROWING),
    "tensorrt-int8": ("tensorrt", "int8-smoothquant", Cache.STATIC),
    # A prefix family's cache grew in this dialect then.
    "ort-prefix": ("ort", "int8-weights", Cache.GROWING),
}
SOURCES = {"ort-prefix": GOLDEN / "glm"}
LENGTH = 64
"""Tokens of the static cache."""


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """The engine's folder; what is too large to keep is as long as it was."""
    folder = tmp_path / "engine"
    shutil.copytree(BEFORE / "engine", folder)
    for name, size in json.loads((folder / ENGINE_MANIFEST).read_text())["sizes"].items():
        if not (folder / name).exists():
            (folder / name).write_bytes(bytes(size))
    return folder


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_load_and_prove_equal(name: str) -> None:
    dialect, recipe, cache = PROGRAMS[name]
    program = api.load_program(BEFORE / name)
    assert (program.dialect, program.recipe, program.signature.cache) == (dialect, recipe, cache)
    if recipe == "int4-int8-prompt" and adds_in_16_bits():
        # Integers of before docs/adr/0028, in branches, where ONNX Runtime cannot be told.
        with pytest.raises(EnvironmentMissingError, match=r"no VNNI.*export again"):
            api.check(program, CHECKPOINT)
        return
    report = api.check(program, SOURCES.get(name, CHECKPOINT))
    assert report.passed
    assert report.greedy_total > 0


def test_ranges_make_the_same_integers(tmp_path: Path) -> None:
    ranges = api.open_ranges(BEFORE / "ranges")
    assert ranges is not None
    ranges.require_checkpoint(api.open_checkpoint(CHECKPOINT).identity)
    again = api.export(
        CHECKPOINT, tmp_path / "out", dialect="tensorrt", recipe="int8-smoothquant", ranges=ranges, max_length=LENGTH,
        dtype="float16",
    )  # fmt: skip
    for file in (WEIGHTS, "quantization.safetensors"):
        assert (again.folder / file).read_bytes() == (BEFORE / "tensorrt-int8" / file).read_bytes()


def test_engines_load(engine: Path) -> None:
    loaded = load_engine(engine)
    assert (loaded.limits.max_batch, loaded.limits.max_context) == (2, LENGTH)
    assert [profile.name for profile in loaded.profiles] == ["prefill", "decode"]
    assert loaded.program.recipe == "int8-smoothquant"


@pytest.mark.parametrize(
    ("name", "kind"),
    [("checkpoint", Kind.CHECKPOINT), ("ranges", Kind.RANGES), *((name, Kind.PROGRAM) for name in PROGRAMS)],
)
def test_every_kind_is_told_and_described(name: str, kind: Kind) -> None:
    assert open_artifact(BEFORE / name).kind is kind
    assert inspect_folder(str(BEFORE / name))


def test_control_another_checkpoint_is_refused(tmp_path: Path) -> None:
    changed = tmp_path / "checkpoint"
    shutil.copytree(CHECKPOINT, changed)
    weights = bytearray((changed / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (changed / "model.safetensors").write_bytes(weights)
    ranges = api.open_ranges(BEFORE / "ranges")
    assert ranges is not None
    with pytest.raises(api.InputError, match="is another checkpoint"):
        ranges.require_checkpoint(api.open_checkpoint(changed).identity)
