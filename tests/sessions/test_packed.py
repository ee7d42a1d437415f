"""Weights packed once for a processor: the same numbers to the bit, and never in the way where something is wrong."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner

from glm_export import api
from glm_export.artifacts.folder_lock import alone
from glm_export.artifacts.program import MODEL, WEIGHTS, OnnxProgram, load_program
from glm_export.cli import cli
from glm_export.errors import EnvironmentMissingError, InputError
from glm_export.inputs.prompts import Prompt
from glm_export.sessions.load import session_of
from glm_export.sessions.onnxruntime import packed as packed_module
from glm_export.sessions.onnxruntime.packed import ENTRY, PackedPrograms
from glm_export.sessions.onnxruntime.session import OrtSession
from glm_export.sessions.session import Logits
from tests.helpers.golden_data import Golden

CPU = ["CPUExecutionProvider"]
Loaded = Callable[..., tuple[Logits, list[Path]]]


@pytest.fixture(autouse=True)
def tiny_programs_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_module, "LEAST_BYTES", 0)
    monkeypatch.setattr(packed_module, "SPARE_BYTES", 0)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str | None], OnnxProgram]:
    """A golden model by recipe, made once."""
    made: dict[str | None, OnnxProgram] = {}
    root = tmp_path_factory.mktemp("packed")

    def export(recipe: str | None) -> OnnxProgram:
        if recipe not in made:
            made[recipe] = api.export(Golden("chatglm2").folder, root / str(recipe), dialect="ort", recipe=recipe)
        return made[recipe]

    return export


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Loaded:
    """Logits of a prompt and a step behind it, and which graphs ONNX Runtime was given."""
    original, given = onnxruntime.InferenceSession, list[Path]()

    def noting(path: str, *args: object, **keywords: object) -> onnxruntime.InferenceSession:
        given.append(Path(path))
        return original(path, *args, **keywords)

    monkeypatch.setattr(onnxruntime, "InferenceSession", noting)

    def load(program: OnnxProgram, cache: PackedPrograms | None, **options: int) -> tuple[Logits, list[Path]]:
        given.clear()
        with OrtSession(program, CPU, packed=cache, **options) as session:
            feeds = session.feeds([Prompt(ids=(5, 6, 7, 8, 9))])
            logits = session.prefill(feeds)
            behind = session.decode(feeds.next_step([3], session.last_position(feeds)))
        # What was packed is tried before it has its name.
        return np.concatenate([logits, behind]), [path for path in given if path.parent.suffix != ".partial"]

    return load


@pytest.mark.parametrize("recipe", [None, "int8-token", "int8-weights", "int4-weights", "int4-int8-prompt"])
def test_the_same_bits(
    recipe: str | None, programs: Callable[..., OnnxProgram], loaded: Loaded, tmp_path: Path
) -> None:
    """Loaded once it is noted, twice it is packed, and then what was packed is loaded; with other threads as well."""
    program, cache = programs(recipe), PackedPrograms(tmp_path)
    expected, _ = loaded(program, None)
    for time in range(4):
        found, given = loaded(program, cache, threads=1 + time % 2)
        np.testing.assert_array_equal(found, expected)
        packed = cache.every()
        assert len(packed) == (time > 0)
        assert [path.parent for path in given] == [packed[0].folder if time > 1 else program.folder]
    assert packed[0].source == str(program.folder.resolve())
    assert packed[0].size > (program.folder / WEIGHTS).stat().st_size
    # The control: it is what was packed that computes.
    whole = (packed[0].folder / WEIGHTS).read_bytes()
    (packed[0].folder / WEIGHTS).write_bytes(bytes(len(whole)))
    assert not np.array_equal(loaded(program, cache)[0], expected)


def packed_once(program: OnnxProgram, loaded: Loaded, cache: PackedPrograms) -> Path:
    for _ in range(2):
        loaded(program, cache)
    (packed,) = cache.every()
    return packed.folder


@pytest.mark.parametrize("damage", ["truncated", "gone", "no graph", "no entry", "another format"])
def test_a_damaged_one_is_not_used(
    damage: str, programs: Callable[..., OnnxProgram], loaded: Loaded, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    program, cache = programs("int8-weights"), PackedPrograms(tmp_path)
    expected, _ = loaded(program, None)
    folder = packed_once(program, loaded, cache)
    if damage == "truncated":
        with (folder / WEIGHTS).open("r+b") as file:
            file.truncate(1000)
    elif damage == "gone":
        (folder / WEIGHTS).unlink()
    elif damage == "no graph":
        (folder / MODEL).write_bytes(bytes((folder / MODEL).stat().st_size))
    elif damage == "no entry":
        (folder / ENTRY).unlink()
    else:
        entry = json.loads((folder / ENTRY).read_text())
        (folder / ENTRY).write_text(json.dumps(entry | {"format": 2}))
    with caplog.at_level(logging.WARNING):
        found, given = loaded(program, cache)
    np.testing.assert_array_equal(found, expected)
    assert given[-1].parent == program.folder
    # Nobody but ONNX Runtime sees that a graph is none.
    assert bool(caplog.messages) == (damage == "no graph")
    for _ in range(2):
        found, given = loaded(program, cache)
        np.testing.assert_array_equal(found, expected)
    assert len(cache.every()) == 1


@pytest.mark.parametrize("other", ["processor", "version", "program", "entries"])
def test_one_for_something_else_is_not_used(
    other: str,
    programs: Callable[..., OnnxProgram],
    loaded: Loaded,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program, cache = programs("int8-weights"), PackedPrograms(tmp_path)
    folder = packed_once(program, loaded, cache)
    if other == "processor":
        monkeypatch.setattr(packed_module, "kernel_fields", lambda _: {"model name": "another", "flags": "fpu"})
    elif other == "version":
        monkeypatch.setattr(onnxruntime, "get_build_info", lambda: "another build")
    elif other == "program":
        program = replace(program, manifest=program.manifest | {"sha256": program.manifest["sha256"] | {WEIGHTS: "0"}})
    else:
        # fp8's sessions are told more than those of other recipes.
        program = replace(program, recipe="fp8")
    for _ in range(2):
        _, given = loaded(program, cache)
        assert given == [program.model_path]
    assert len(cache.every()) == 2
    assert folder in [packed.folder for packed in cache.every()]


def test_the_least_recently_loaded_goes_first(
    programs: Callable[..., OnnxProgram], loaded: Loaded, tmp_path: Path
) -> None:
    first, second = programs("int8-weights"), programs("int8-token")
    cache = PackedPrograms(tmp_path)
    size = sum(path.stat().st_size for path in packed_once(first, loaded, cache).iterdir())
    small = PackedPrograms(tmp_path, limit_bytes=int(1.5 * size))
    for _ in range(2):
        loaded(second, small)
    assert [packed.source for packed in small.every()] == [str(second.folder.resolve())]
    # One that is too large alone is not packed at all.
    none = PackedPrograms(tmp_path / "none", limit_bytes=1000)
    for _ in range(3):
        assert loaded(first, none)[1] == [first.model_path]
    assert not none.every()


def test_one_that_computes_something_else_is_not_kept(
    programs: Callable[..., OnnxProgram],
    loaded: Loaded,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Without scales beside its integers a packed program computes zeros (ONNX Runtime 1.31); it is tried once."""
    kept_in_graph = {"session.optimized_model_external_initializers_min_size_in_bytes": "1024"}
    monkeypatch.setattr(packed_module, "SAVING", packed_module.SAVING | kept_in_graph)
    program, cache = programs("int8-weights"), PackedPrograms(tmp_path)
    expected, _ = loaded(program, None)
    for time in range(4):
        caplog.clear()
        found, given = loaded(program, cache)
        np.testing.assert_array_equal(found, expected)
        assert given == [program.model_path]
        assert ("computes something else once it is packed" in caplog.text) == (time == 1)
    assert not cache.every()


def test_where_it_cannot_be_packed(
    programs: Callable[..., OnnxProgram],
    loaded: Loaded,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No room, somebody else at it, a home that is a file: the program is loaded as it is."""
    program = programs("int8-weights")
    expected, _ = loaded(program, None)
    with monkeypatch.context() as full:
        full.setattr(packed_module, "SPARE_BYTES", 1 << 60)
        cache = PackedPrograms(tmp_path / "full")
        for _ in range(3):
            np.testing.assert_array_equal(loaded(program, cache)[0], expected)
        assert not cache.every()
    cache = PackedPrograms(tmp_path / "taken")
    loaded(program, cache)
    (seen,) = cache.home.glob("*.seen")
    monkeypatch.setattr(packed_module, "alone", _taken)
    np.testing.assert_array_equal(loaded(program, cache)[0], expected)
    assert not cache.every()
    monkeypatch.setattr(packed_module, "alone", alone)
    loaded(program, cache)
    assert [packed.folder.name for packed in cache.every()] == [seen.stem]
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(loaded(program, PackedPrograms(tmp_path / "file"))[0], expected)
    assert "is loaded as it is" in caplog.text


def _taken(folder: Path) -> object:
    raise InputError(f"another run is writing {folder}")


def test_a_program_that_cannot_be_loaded_says_so_itself(programs: Callable[..., OnnxProgram], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(programs("int8-weights").folder, broken)
    program, cache = load_program(broken), PackedPrograms(tmp_path / "cache")
    (broken / MODEL).write_bytes(b"no graph")
    for _ in range(3):
        with pytest.raises(EnvironmentMissingError, match=f"cannot load {program.model_path}"):
            OrtSession(program, CPU, packed=cache)
    assert not cache.every()


def test_what_killed_runs_left_is_replaced(
    programs: Callable[..., OnnxProgram], loaded: Loaded, tmp_path: Path
) -> None:
    program, cache = programs("int8-weights"), PackedPrograms(tmp_path)
    loaded(program, cache)
    (seen,) = cache.home.glob("*.seen")
    left = cache.home / f".{seen.stem}.partial"
    left.mkdir()
    (left / MODEL).write_bytes(b"half")
    loaded(program, cache)
    assert not left.exists()
    assert len(cache.every()) == 1


def test_who_keeps_it(programs: Callable[..., OnnxProgram], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line does unless told otherwise, the library where it is asked; `cache` lists and removes it."""
    monkeypatch.setenv("GLM_EXPORT_CACHE", str(tmp_path))
    folder = str(programs("int8-weights").folder)
    cache, run = PackedPrograms(), CliRunner().invoke
    session_of(programs("int8-weights")).close()
    asked = ["generate", folder, "--prompt", "春"]
    for options in (["--no-cache"], []):
        assert run(cli, [*asked, "--max-new-tokens", "1", *options]).exit_code == 0
        assert bool(list(tmp_path.rglob("*.seen"))) == (not options)
    api.load_session(folder, cache=True).close()
    assert len(cache.every()) == 1
    told = run(cli, ["cache", "list"]).stdout
    assert "packed for this processor: 1 program," in told
    assert folder in told.replace("\n", "")
    assert run(cli, ["cache", "remove", "--all"]).exit_code == 0
    assert not cache.every()
    monkeypatch.setenv("GLM_EXPORT_PACKED_GB", "0")
    for _ in range(3):
        api.load_session(folder, cache=True).close()
    assert not cache.every()
    monkeypatch.setenv("GLM_EXPORT_PACKED_GB", "much")
    with pytest.raises(InputError, match="GLM_EXPORT_PACKED_GB should be gigabytes, 0 keeps nothing; found 'much'"):
        PackedPrograms()
