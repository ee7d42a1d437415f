"""Engines in their folders: whether one will load on a machine, damaged ones, and what the doctor says of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from glm_export.artifacts import manifest as manifest_file
from glm_export.artifacts.engine import PLAN, load_engine
from glm_export.artifacts.manifest import ENGINE_MANIFEST
from glm_export.artifacts.program import OnnxProgram
from glm_export.deployment import build as deployment, doctor
from glm_export.engines import vendor
from glm_export.engines.fit import Host, incompatibilities, needed_bytes, require_fit
from glm_export.errors import CheckpointError, EnvironmentMissingError, GlmExportError, InputError
from glm_export.machine import gpu
from tests.helpers import rtx
from tests.helpers.golden_data import Golden
from tests.terminal.test_cli import run

rtx.require_installed()

A10 = gpu.Gpu(name="NVIDIA A10", compute_capability="8.6", memory_bytes=24 * 10**9)
L4 = gpu.Gpu(name="NVIDIA L4", compute_capability="8.9", memory_bytes=24 * 10**9)
H100 = gpu.Gpu(name="NVIDIA H100", compute_capability="9.0", memory_bytes=80 * 10**9)
T4 = gpu.Gpu(name="NVIDIA T4", compute_capability="7.5", memory_bytes=16 * 10**9)
BY_TENSORRT = {
    "runtime": "tensorrt", "version": "10.16.1.11",
    "built_on": {"system": "Linux", "gpu": A10.name, "compute_capability": "8.6", "driver": "CUDA 13.0"},
}  # fmt: skip
"""What ``engine.json`` says of an engine that TensorRT built on an A10."""
Values = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def without_gpu() -> Iterator[None]:
    with rtx.no_gpu():
        yield


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small engine; for reading only."""
    out = tmp_path_factory.mktemp("built") / "engine"
    return deployment.build(Golden("chatglm2").folder, out, runtime=rtx.NAME, max_context=64).folder


def merged(values: Values, changes: Values) -> Values:
    """Values within values are changed, not replaced."""
    return values | {
        name: merged(values.get(name, {}), change) if isinstance(change, dict) else change
        for name, change in changes.items()
    }


def copied(built: Path, folder: Path, **changes: Any) -> Path:
    """The engine under another name, which says other things of itself."""
    shutil.copytree(built, folder)
    path = folder / ENGINE_MANIFEST
    path.write_text(json.dumps(merged(json.loads(path.read_text()), changes)))
    return folder


def machine(*gpus: gpu.Gpu, system: str = "Linux", **versions: str) -> Host:
    """A machine with these GPUs, and of the runtimes those whose version is given."""
    named = {name.replace("_", "-"): version for name, version in versions.items()}
    missing = {name: f"not installed; {vendor.INSTALL[name]}" for name in vendor.RUNTIMES if name not in named}
    targets = vendor.targets_of(vendor.load(rtx.NAME).module) if rtx.NAME in named else ()
    return Host(system=system, gpus=gpus, versions=named, missing=missing, targets=targets)


# -- whether it loads ----------------------------------------------------------------------------------

MEETS = [
    ("the same in everything", {}, machine(A10, tensorrt="10.16.1")),
    ("the same build under another name", {}, machine(A10, tensorrt="10.16.1.11.post1")),
    ("a GPU of the same kind", {}, machine(gpu.Gpu(name="A40", compute_capability="8.6", memory_bytes=10**9),
                                           tensorrt="10.16.1.11")),
    ("later, and built for later", {"version": "10.9.0", "compatibility": {"version": True}},
     machine(A10, tensorrt="10.16.1")),
    ("a later patch, and built for later", {"compatibility": {"version": True}}, machine(A10, tensorrt="10.16.0")),
    ("a newer series, and built for later", {"compatibility": {"version": True}}, machine(A10, tensorrt="11.4.0")),
    ("another GPU, and built for Ampere and later", {"compatibility": {"hardware": "ampere-plus"}},
     machine(L4, tensorrt="10.16.1")),
]  # fmt: skip
MEETS_RTX = [
    ("any GPU from Ampere on", {}, (A10,), "Linux"),
    ("any system", {}, (L4,), "Windows"),
    ("a target", {"compatibility": {"targets": ["8.6", "8.9"]}}, (L4,), "Linux"),
    ("an old GPU that is a target", {"compatibility": {"targets": ["7.5"]}}, (T4,), "Linux"),
]
MISSES = [
    ("earlier", {}, machine(A10, tensorrt="10.13.3"),
     ["built with tensorrt 10.16.1.11, found 10.13.3", "install tensorrt 10.16.1.11", "--version-compatible makes"]),
    ("another patch", {}, machine(A10, tensorrt="10.16.0"), ["found 10.16.0", "or build again with 10.16.0"]),
    ("later, and not built for it", {}, machine(A10, tensorrt="11.4.0"), ["found 11.4.0", "--version-compatible"]),
    ("earlier than what it was built for and later", {"compatibility": {"version": True}},
     machine(A10, tensorrt="10.9.0"),
     ["built for tensorrt 10.16.1.11 and later, found 10.9.0", "or build again with 10.9.0"]),
    ("no runtime", {}, machine(A10, tensorrt_rtx="1.7"),
     ["tensorrt 10.16.1.11 is needed: not installed; pip install 'glm-export[tensorrt]' --extra-index"]),
    ("another GPU", {}, machine(L4, tensorrt="10.16.1"),
     ["built for NVIDIA A10 (compute capability 8.6), NVIDIA L4 has 8.9", "--hardware-compatible ampere-plus"]),
    ("a GPU before Ampere", {"compatibility": {"hardware": "ampere-plus"}}, machine(T4, tensorrt="10.16.1"),
     ["NVIDIA T4 has 7.5", "build it here"]),
    ("another kind, and built for one kind", {"compatibility": {"hardware": "same-compute-capability"}},
     machine(L4, tensorrt="10.16.1"), ["NVIDIA L4 has 8.9"]),
    ("no GPU", {}, machine(tensorrt="10.16.1"), ["no NVIDIA GPU or driver was found; run it where there is one"]),
    ("another system", {}, machine(A10, system="Windows", tensorrt="10.16.1"),
     ["built on Linux, this is Windows; build it here"]),
    ("too little memory", {"memory": {"weights": 24 * 10**9}}, machine(A10, tensorrt="10.16.1"),
     ["about 24.0 GB with one row, NVIDIA A10 has 24.0 GB", "quantize", "smaller --max-context"]),
]  # fmt: skip
MISSES_RTX = [
    ("no target", {"compatibility": {"targets": ["8.9", "12.0"]}}, (A10,),
     ["built for compute capability 8.9, 12.0, NVIDIA A10 has 8.6", "build with --compute-capability 8.6"]),
    ("before Ampere, for which one builds apart", {}, (T4,),
     ["built for compute capability 8.0, 8.6, 8.9, 12.0, 12.1, NVIDIA T4 has 7.5", "with --compute-capability 7.5"]),
    ("newer than Ampere, and none of its targets", {}, (H100,),
     ["NVIDIA H100 has 9.0; tensorrt-rtx has no target 9.0, build with --runtime tensorrt"]),
    ("none of its targets, and not one of the engine's", {"compatibility": {"targets": ["8.6"]}}, (H100,),
     ["built for compute capability 8.6, NVIDIA H100 has 9.0; tensorrt-rtx has no target 9.0"]),
]  # fmt: skip


@pytest.mark.parametrize(("why", "changes", "found"), MEETS, ids=[case[0] for case in MEETS])
def test_nothing_speaks_against(why: str, changes: Values, found: Host, built: Path, tmp_path: Path) -> None:
    engine = load_engine(copied(built, tmp_path / "engine", **merged(BY_TENSORRT, changes)))
    assert incompatibilities(engine, found) == []


@pytest.mark.parametrize(("why", "changes", "found", "words"), MISSES, ids=[case[0] for case in MISSES])
def test_one_thing_speaks_against(
    why: str, changes: Values, found: Host, words: list[str], built: Path, tmp_path: Path
) -> None:
    """What was expected, what was found, what to do."""
    engine = load_engine(copied(built, tmp_path / "engine", **merged(BY_TENSORRT, changes)))
    (obstacle,) = incompatibilities(engine, found)
    for word in words:
        assert word in obstacle


@pytest.mark.parametrize(("why", "changes", "gpus", "system"), MEETS_RTX, ids=[case[0] for case in MEETS_RTX])
def test_nothing_speaks_against_rtx(
    why: str, changes: Values, gpus: tuple[gpu.Gpu, ...], system: str, built: Path, tmp_path: Path
) -> None:
    engine = load_engine(copied(built, tmp_path / "engine", **changes))
    assert incompatibilities(engine, machine(*gpus, system=system, tensorrt_rtx=engine.version)) == []


@pytest.mark.parametrize(("why", "changes", "gpus", "words"), MISSES_RTX, ids=[case[0] for case in MISSES_RTX])
def test_one_thing_speaks_against_rtx(
    why: str, changes: Values, gpus: tuple[gpu.Gpu, ...], words: list[str], built: Path, tmp_path: Path
) -> None:
    engine = load_engine(copied(built, tmp_path / "engine", **changes))
    (obstacle,) = incompatibilities(engine, machine(*gpus, tensorrt_rtx=engine.version))
    for word in words:
        assert word in obstacle
    assert len(incompatibilities(engine, machine(*gpus, tensorrt_rtx="1.6.0"))) == 2


def test_every_reason_is_named(built: Path, tmp_path: Path) -> None:
    folder = copied(built, tmp_path / "engine", **merged(BY_TENSORRT, {"built_on": {"system": "Windows"}}))
    engine = load_engine(folder)
    small = gpu.Gpu(name="small", compute_capability="12.0", memory_bytes=needed_bytes(engine) - 1)
    assert len(incompatibilities(engine, machine(small, tensorrt="11.0"))) == 4
    with pytest.raises(EnvironmentMissingError, match=r"will not load here: .*Windows.*; no NVIDIA GPU") as raised:
        require_fit(engine)
    assert raised.value.exit_code == 3


def test_memory_is_of_the_larger_profile(built: Path) -> None:
    """Both contexts share their scratch."""
    engine = load_engine(built)
    memory = engine.manifest["memory"]
    prefill, decode = memory["activations"]["prefill"], memory["activations"]["decode"]
    assert needed_bytes(engine) == memory["weights"] + max(prefill, decode) + 2 * 2 * 2 * 64 * 16 * 2


# -- damaged folders -----------------------------------------------------------------------------------


def flipped(folder: Path) -> None:
    whole = bytearray((folder / PLAN).read_bytes())
    whole[len(whole) // 2] ^= 1
    (folder / PLAN).write_bytes(whole)


def rewritten(change: Callable[[Values], object]) -> Callable[[Path], object]:
    """Damages ``engine.json``."""

    def damage(folder: Path) -> None:
        path = folder / ENGINE_MANIFEST
        values = json.loads(path.read_text())
        change(values)
        path.write_text(json.dumps(values))

    return damage


def without(name: str) -> Callable[[Path], object]:
    return rewritten(lambda values: values.pop(name))


READ = (
    "program", "runtime", "version", "limits", "profiles", "built_on", "compatibility", "memory", "plan_sha256",
    "sizes",
)  # fmt: skip
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no plan": (lambda folder: (folder / PLAN).unlink(), r"engine\.plan should have \d+ bytes, found no file"),
    "a short plan": (lambda folder: (folder / PLAN).write_bytes(b"short"), r"should have \d+ bytes, found 5"),
    "no JSON": (lambda folder: (folder / ENGINE_MANIFEST).write_text("{"), r"engine\.json is not readable JSON"),
    "another JSON": (lambda folder: (folder / ENGINE_MANIFEST).write_text("[]"), "should hold a JSON object with"),
    "another format": (rewritten(lambda values: values.update(format=2)), "has format 2, this version reads 1"),
    "three corners": (
        rewritten(lambda values: values["profiles"][0]["shapes"]["input_ids"].pop()), "does not fit this version",
    ),
    "an unknown limit": (rewritten(lambda values: values["limits"].update(rows=3)), "does not fit this version"),
    **{
        f"no {name}": (
            without(name), "the sizes of its files" if name == "sizes" else rf"fit this version: it has no '{name}'",
        )
        for name in READ
    },
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folders(damage: str, built: Path, tmp_path: Path) -> None:
    """One line that says what to do; the doctor says the same and goes on."""
    folder = copied(built, tmp_path / "engine")
    change, message = DAMAGES[damage]
    change(folder)
    with pytest.raises(CheckpointError, match=message) as raised:
        load_engine(folder)
    assert "build again" in str(raised.value)
    verdict = doctor.judge(folder, machine(A10))
    assert (verdict.kind, verdict.runs, verdict.obstacles) == ("engine", False, (str(raised.value),))


def test_limits_that_contradict_each_other(built: Path, tmp_path: Path) -> None:
    folder = copied(built, tmp_path / "engine", limits={"prefill_tokens": 65})
    with pytest.raises(GlmExportError, match="--prefill-tokens 65 exceeds --max-context 64"):
        load_engine(folder)


def test_folders_that_are_no_engine(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no engine\.json; give a folder that 'glm-export build' wrote"):
        load_engine(tmp_path)


# -- the doctor ----------------------------------------------------------------------------------------


@pytest.fixture
def here(built: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """The doctor is on a machine that runs the engine."""
    found = machine(A10, tensorrt_rtx=load_engine(built).version)
    monkeypatch.setattr(doctor, "probe_host", lambda: found)
    return found


def test_a_flipped_byte_is_seen_by_reading_all(
    here: Host, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest_file, "QUICK_BYTES", 1)  # real plans are large
    folder = copied(built, tmp_path / "engine")
    flipped(folder)
    assert doctor.judge(folder, here).runs
    (obstacle,) = doctor.judge(folder, here, thorough=True).obstacles
    assert f"{folder / PLAN} is damaged or was changed: its sha256" in obstacle
    assert doctor.judge(built, here, thorough=True).runs
    assert run("doctor", folder).exit_code == 0
    result = run("doctor", folder, "--thorough")
    assert result.exit_code == 3
    assert f"{folder}: does not run" in result.stdout


def test_the_doctor_shows_the_machine(here: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing of an extra has a line of its own, unless its runtime's line says the same."""
    lacking = {"cuda": "too old; install it", "tensorrt": here.missing[vendor.TENSORRT]}
    monkeypatch.setattr(doctor, "lacking", lambda _: lacking)
    result = run("doctor")
    assert result.exit_code == 0
    shown = " ".join(result.stdout.split())
    for words in (
        "NVIDIA A10, compute capability 8.6, 24.00 GB", f"tensorrt-rtx {here.versions[rtx.NAME]}",
        f"tensorrt not installed; {vendor.INSTALL[vendor.TENSORRT]}", "driver none found", "torch 2.",
        "CPUExecutionProvider", "cuda too old; install it",
    ):  # fmt: skip
        assert words in shown
    assert shown.count(lacking["tensorrt"]) == 1
    report = json.loads(run("doctor", "--json").stdout)
    assert (report["folders"], report["lacking"]) == ([], lacking)


def test_the_doctor_judges_folders(here: Host, built: Path, demo_program: OnnxProgram, tmp_path: Path) -> None:
    """Engines and programs, alone or in a folder of several; what is neither does not run."""
    copied(built, tmp_path / "all" / "engine")
    other = copied(built, tmp_path / "all" / "other", version="1.6.0.1")
    shutil.copytree(demo_program.folder, tmp_path / "all" / "program")
    (tmp_path / "all" / "notes").mkdir()
    result = run("doctor", tmp_path / "all")
    assert result.exit_code == 3
    lines = result.stdout.splitlines()
    assert f"{tmp_path / 'all' / 'engine'}: runs (engine, tensorrt-rtx {here.versions[rtx.NAME]})" in lines
    assert f"{other}: does not run (engine, tensorrt-rtx 1.6.0.1)" in lines
    assert f"{tmp_path / 'all' / 'program'}: runs (ONNX program, onnxruntime (onnx))" in lines
    assert any(line.startswith("  - it was built with tensorrt-rtx 1.6.0.1, found ") for line in lines)
    assert run("doctor", tmp_path / "all" / "engine", demo_program.folder).exit_code == 0
    report = run("doctor", "--json", tmp_path / "all", tmp_path / "all" / "notes", tmp_path / "nowhere")
    assert report.exit_code == 3
    folders = json.loads(report.stdout)["folders"]
    assert [(Path(verdict["folder"]).name, verdict["kind"], verdict["runs"]) for verdict in folders] == [
        ("engine", "engine", True), ("other", "engine", False), ("program", "ONNX program", True),
        ("notes", doctor.OTHER, False), ("nowhere", doctor.OTHER, False),
    ]  # fmt: skip
    assert folders[1]["obstacles"][0] in " ".join(lines)


def test_the_doctor_without_a_gpu(built: Path) -> None:
    result = run("doctor", built, "--json")
    assert result.exit_code == 3
    report = json.loads(result.stdout)
    assert (report["machine"]["gpus"], report["driver"]) == ([], None)
    assert report["folders"][0]["obstacles"] == ["no NVIDIA GPU or driver was found; run it where there is one"]


def test_a_damaged_program_is_judged_as_well(here: Host, demo_program: OnnxProgram, tmp_path: Path) -> None:
    folder = tmp_path / "program"
    shutil.copytree(demo_program.folder, folder)
    (folder / "model.onnx").write_bytes(b"")
    verdict = doctor.judge(folder, here)
    assert (verdict.kind, verdict.runs) == ("ONNX program", False)
    assert "export again" in verdict.obstacles[0]
