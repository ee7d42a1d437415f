"""The kit on a machine without network: wheels cut and put together, calls within limits, results brought back."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.benchmarks.planted_results import HOME, ROOT, alive, ended_by_sigterm, record, silent_python

chain, main, pieces, there, wheels = (
    import_module(f"carry.{name}") for name in ("chain", "main", "pieces", "there", "wheels")
)


def wheel(folder: Path, name: str, files: dict[str, str], tag: str = "cp312-cp312-manylinux_2_28_x86_64") -> Path:
    """A package as an index has it."""
    folder.mkdir(exist_ok=True)
    path, info = folder / f"{name}-1.5-{tag}.whl", f"{name}-1.5.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for entry, text in files.items():
            archive.writestr(entry, text)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def cut_for_calls(folder: Path, size: int = 400) -> list[Path]:
    """A small site folder in pieces, a folder each."""
    (folder / "site" / "carried").mkdir(parents=True)
    (folder / "site" / "carried" / "__init__.py").write_text("ANSWER = 42\n")
    (folder / "site" / "carried" / "noise.bin").write_bytes(os.urandom(1500))
    pieces.pack(folder / "site", folder / "site.tar.xz")
    places: list[Path] = chain.laid_out(folder / "site.tar.xz", folder / "calls", size)
    return places


# -- cut, taken, put together ------------------------------------------------------------------------------------------


def test_pieces_in_any_order_become_the_folder(tmp_path: Path) -> None:
    places, state = cut_for_calls(tmp_path), tmp_path / "state"
    assert len(places) > 3
    assert all(path.stat().st_size <= 400 for place in places for path in place.glob("site*"))
    for place in places[:0:-1]:
        assert "missing: site.tar.xz.00" in there.take(place, state)
    with pytest.raises(pieces.CarryError, match="the chain broke; begin it again"):
        there.ready(state, tmp_path / "none")
    assert f"all {len(places)} pieces" in there.take(places[0], state)
    for name in ("__init__.py", "noise.bin"):
        assert (state / "site/carried" / name).read_bytes() == (tmp_path / "site/carried" / name).read_bytes()
    # Nothing is held twice, and a call that is made again does no harm.
    assert sorted(path.name for path in state.iterdir()) == ["manifest.json", "site"]
    assert "already" in there.take(places[1], state)
    assert there.ready(state, tmp_path / "none") == "everything is there"


def test_a_damaged_piece_is_refused_and_the_whole_one_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places, state = cut_for_calls(tmp_path), tmp_path / "state"
    piece = next(places[1].glob("site*"))
    whole = piece.read_bytes()
    piece.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    for place in places[2:]:
        there.take(place, state)
    assert there.main(["take", str(places[1]), str(state)]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said == f"{piece} is not the piece that was cut: its checksum differs; carry it again"
    piece.write_bytes(whole)
    there.take(places[1], state)
    assert "put together" in there.take(places[0], state)


def test_pieces_of_another_cut_are_not_mixed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = cut_for_calls(tmp_path / "a"), cut_for_calls(tmp_path / "b")
    state = tmp_path / "state"
    for place in first[:-1]:
        there.take(place, state)
    for place in second[:-1]:
        assert "missing" in there.take(place, state)
    assert "put together" in there.take(second[-1], state)
    assert (state / "site/carried/noise.bin").read_bytes() == (tmp_path / "b/site/carried/noise.bin").read_bytes()


def test_an_archive_does_not_lead_out_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to("/etc")
    pieces.pack(tmp_path / "in", tmp_path / "a.tar.xz")
    with pytest.raises(pieces.CarryError, match="cannot be taken apart"):
        pieces.unpack(tmp_path / "a.tar.xz", tmp_path / "out")


def test_of_a_long_log_the_end_is_kept(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "part.log").write_bytes(b"x" * pieces.LONGEST_LOG + b"last words")
    pieces.pack(tmp_path / "in", tmp_path / "a.tar.xz", last_words=True)
    pieces.unpack(tmp_path / "a.tar.xz", tmp_path / "out")
    kept = (tmp_path / "out" / "part.log").read_bytes()
    assert len(kept) == pieces.LONGEST_LOG
    assert kept.endswith(b"xlast words")


# -- what is carried ---------------------------------------------------------------------------------------------------


def test_what_the_machine_lacks_is_carried() -> None:
    """The list of a machine with an H100: ONNX Runtime for the CPU does not stand for the one with CUDA."""
    listed = wheels.read_there(HOME / "carry" / "there.txt")
    assert listed.python == "3.12"
    needed = wheels.missing(wheels.SETS, listed)
    assert {"polygraphy", "rich-click", "sentencepiece", "tiktoken", "onnxruntime-gpu==1.31.1"} <= set(needed)
    assert {"tensorrt-rtx-cu13-libs==1.7.1.116", "tensorrt-rtx-cu13-bindings==1.7.1.116"} <= set(needed)
    assert not {"numpy", "onnx", "onnx-ir", "onnxscript", "ml-dtypes", "click"} & set(needed)
    other = wheels.There("3.12", {"onnxruntime-gpu": "1.30.0"})
    assert wheels.missing(["onnxruntime"], other) == ["onnxruntime-gpu==1.31.1"]
    assert wheels.missing(["onnxruntime"], wheels.There("3.12", {"onnxruntime-gpu": "1.31.1"})) == []
    with pytest.raises(pieces.CarryError, match="set 'cuda' is unknown; there are small"):
        wheels.missing(["cuda"], listed)


def test_a_list_without_a_python_is_refused(tmp_path: Path) -> None:
    (tmp_path / "there.txt").write_text("numpy==2.5.0\n")
    with pytest.raises(pieces.CarryError, match="should have a line python=="):
        wheels.read_there(tmp_path / "there.txt")
    (tmp_path / "there.txt").write_text(there.look())
    assert wheels.read_there(tmp_path / "there.txt").packages["numpy"]


def test_pip_takes_the_wheel_of_the_other_python(tmp_path: Path) -> None:
    """From a folder; this Python's own wheel lies beside it."""
    index = tmp_path / "index"
    right = wheel(index, "kit_probe", {"kit_probe/__init__.py": "", "kit_probe-1.5.data/purelib/more.py": "",
                                       "kit_probe-1.5.data/scripts/run": ""})  # fmt: skip
    wheel(index, "kit_probe", {"kit_probe/__init__.py": "wrong"}, "cp310-cp310-manylinux_2_28_x86_64")
    machine = wheels.There("3.12", {})
    offline = ["--no-index", "--find-links", str(index)]
    found = wheels.download(["kit-probe"], machine, tmp_path / "wheels", offline)
    assert [path.name for path in found] == [right.name]
    assert wheels.download(["kit-probe"], machine, tmp_path / "wheels", offline) == found
    wheels.lay_out(found, tmp_path / "site")
    names = {str(path.relative_to(tmp_path / "site")) for path in pieces.files_of(tmp_path / "site")}
    assert {"kit_probe/__init__.py", "more.py", "kit_probe-1.5.dist-info/METADATA"} <= names
    assert not any("scripts" in name for name in names)
    with pytest.raises(pieces.CarryError, match=r"no wheels for Python 3\.12: .*nowhere"):
        wheels.download(["nowhere-to-be-found"], machine, tmp_path / "wheels", offline)


def test_what_onnxruntime_does_not_use_stays_here(tmp_path: Path) -> None:
    found = wheel(tmp_path, "onnxruntime_gpu", {
        "onnxruntime/capi/libonnxruntime.so.1.31.1": "", "onnxruntime/capi/libonnxruntime_providers_cuda.so": "",
        "onnxruntime/capi/libonnxruntime_providers_tensorrt.so": "", "onnxruntime/transformers/models/x.py": "",
    })  # fmt: skip
    wheels.lay_out([found], tmp_path / "site")
    left = {path.name for path in pieces.files_of(tmp_path / "site/onnxruntime")}
    assert left == {"libonnxruntime_providers_cuda.so"}


# -- calls -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def ignored() -> Iterator[Path]:
    """A folder below the checkout that git ignores, as calls carry it."""
    folder = ROOT / "gpu-carry" / f"test-{os.getpid()}"
    folder.mkdir(parents=True)
    yield folder
    shutil.rmtree(folder)


def asked(**others: Any) -> Any:
    return SimpleNamespace(**{"state": "/dev/shm/there", "results": "$OUT", "budget": 1800, "words": []} | others)


def test_calls_keep_their_limits(ignored: Path) -> None:
    places, limits = cut_for_calls(ignored), chain.Limits()
    found = chain.calls(places, ignored / "earlier", asked(), limits)
    takes, runs = found[: len(places)], found[len(places) :]
    assert [call.carries for call in takes] == [(place,) for place in places]
    assert [int(call.command.split()[-1]) for call in runs] == [540, 540, 1800 - 30 * len(places) - 2 * 600 - 60]
    assert all(len(call.command) <= 2000 for call in found)
    with pytest.raises(pieces.CarryError, match="characters, 2000 at most; name fewer parts"):
        chain.calls(places, ignored / "earlier", asked(words=["full-build-int8-smoothquant"] * 80), limits)
    with pytest.raises(pieces.CarryError, match="give a larger --budget"):
        chain.calls(places, ignored / "earlier", asked(budget=30 * len(places) + 100), limits)
    heavy = chain.Limits(bytes=chain.checkout_bytes() + 100)
    with pytest.raises(pieces.CarryError, match="cut smaller pieces"):
        chain.calls(places, ignored / "earlier", asked(), heavy)
    # What was brought back by an earlier visit is carried to the next.
    (ignored / "earlier").mkdir()
    again = chain.calls(places, ignored / "earlier", asked(), limits)
    assert again[-1].carries == (ignored / "earlier",)


def test_a_piece_has_the_room_that_the_checkout_leaves() -> None:
    limits = chain.Limits()
    assert chain.piece_bytes(limits, 10_000_000) == 38_000_000
    assert chain.piece_bytes(limits, 40_000_000) == limits.bytes - 40_000_000 - chain.MARGIN_BYTES
    with pytest.raises(pieces.CarryError, match="the checkout alone has 66"):
        chain.piece_bytes(limits, 66_500_000)
    # This checkout, with a piece that is worth a call.
    assert chain.piece_bytes(limits, chain.checkout_bytes()) > 25_000_000


def test_a_call_that_is_cut_off_brings_its_results(tmp_path: Path) -> None:
    """SIGTERM, as from the limit of a call, while a part waits; nothing it started stays behind."""
    state, back = tmp_path / "state", tmp_path / "back"
    (state / "site").mkdir(parents=True)
    python, started = silent_python(tmp_path)
    command = ["bash", str(HOME / "carry/run_there.sh"), str(state), str(tmp_path / "none"), str(back), "540"]
    environment = os.environ | {"PATH": f"{python.parent}:{os.environ['PATH']}", "PYTHON": sys.executable}
    ended_by_sigterm([*command, "--on-cpu", "tensorrt-8.6"], started, environment)
    assert not alive(int(started.read_text()))
    assert main.brought_back([back], tmp_path / "here/results", tmp_path / "earlier") > 1
    found = record.read(tmp_path / "here/results", "probe-tensorrt-8.6")
    assert found["error"] == "cut off with the whole run"
    assert (tmp_path / "here" / there.ARCHIVE).is_file()
    # And the next visit, to a machine that knows nothing, goes on from there.
    shutil.rmtree(state)
    (state / "site").mkdir(parents=True)
    assert "files of an earlier visit" in there.ready(state, tmp_path / "earlier")
    assert record.read(state / "results", "probe-tensorrt-8.6") == found


def test_a_broken_chain_says_so_before_anything_runs(tmp_path: Path) -> None:
    command = ["bash", str(HOME / "carry/run_there.sh"), str(tmp_path / "state"), "none", str(tmp_path / "back"), "540"]
    environment = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout) == (3, "")
    assert "begin it again" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "back").exists()


def test_the_chain_is_rehearsed_from_wheels_to_report(
    ignored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of it but the size: a wheel of a few kB in three pieces, and one part, in this Python."""
    tag = "py3-none-any"
    wheel(tmp_path / "index", "kit_probe", {"kit_probe.py": os.urandom(900).hex()}, tag)
    (tmp_path / "there.txt").write_text(there.look())
    monkeypatch.setattr(main, "FOLDER", ignored)
    monkeypatch.setitem(wheels.SETS, "small", ("kit-probe",))
    code = main.main([
        "rehearse", "--there-python", sys.executable, "--there", str(tmp_path / "there.txt"), "--sets", "small",
        "--piece-mb", "0.0005", "--budget", "300", "--wheels", str(tmp_path / "wheels"),
        "--pip", f"--no-index --find-links {tmp_path / 'index'}", "machine",
    ])  # fmt: skip
    said = capsys.readouterr()
    assert code == 0, said
    text = (ignored / "rehearsal" / "rehearsal.md").read_text(encoding="utf-8")
    assert "carry/there.py take" in text
    assert "gpu-results.tar.xz.00, manifest.json, report.md" in text
    results = ignored / "rehearsal" / "results"
    assert record.read(results, "machine")["passed"] is True
    assert "Rehearsal without a GPU" in (results / "report.md").read_text(encoding="utf-8")
    assert (ignored / "rehearsal" / there.ARCHIVE).is_file()
