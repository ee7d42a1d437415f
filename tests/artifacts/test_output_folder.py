"""Where a folder may be written, what --force replaces, and what killed runs leave behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from glm_export.artifacts import output_folder
from glm_export.artifacts.folder_lock import alone
from glm_export.artifacts.manifest import MANIFEST, MARKER, read_manifest, recorded_files, require_undamaged, write_json
from glm_export.artifacts.open import Kind
from glm_export.artifacts.output_folder import abandon_all, require_writable, scratch_folder, whole_folder
from glm_export.errors import CheckpointError, InputError

OURS = {"format": 1, "signature": {}, "config": {}, "dialect": "onnx"}


def program(folder: Path, **files: str) -> Path:
    """A folder as an export leaves it, as far as its manifest goes."""
    folder.mkdir(parents=True)
    for name, text in {"model.onnx": "graph", **files}.items():
        (folder / name).write_text(text)
    write_json(folder / MANIFEST, OURS | recorded_files(folder))
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- where -------------------------------------------------------------------------------------------------------------


def test_a_link_to_a_folder_stands_for_it(tmp_path: Path) -> None:
    real = program(tmp_path / "disk" / "real")
    link = tmp_path / "out"
    link.symlink_to(real)
    assert require_writable(link, force=True) == real
    with whole_folder(require_writable(link, force=True), force=True) as folder:
        assert folder.parent == real.parent
        (folder / "new").touch()
    assert link.is_symlink()
    assert names(link) == ["new"]
    assert names(real.parent) == ["real"]


@pytest.mark.parametrize("name", ["dangling", "to a file", ".", "..", "fifo", "file", "below/a file", "/"])
def test_what_can_be_no_folder_is_told_before_any_work(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    (tmp_path / "below").touch()
    (tmp_path / "to a file").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "fifo")
    before = names(tmp_path)
    with pytest.raises(InputError, match=r"link to|no name for|no folder|mount point"):
        require_writable(Path(name), force=True)
    assert names(tmp_path) == before


def test_nothing_is_written_into_what_is_read(tmp_path: Path) -> None:
    source = tmp_path / "models" / "glm"
    source.mkdir(parents=True)
    for out, said in (
        (source, "is the folder that is read"),
        (source / "onnx", "which is only read"),
        (source / "a" / "b", "which is only read"),
        (tmp_path / "models", "which is read"),
    ):
        with pytest.raises(InputError, match=said):
            require_writable(out, force=True, sources=[source])
    (tmp_path / "link").symlink_to(source)
    with pytest.raises(InputError, match="is the folder that is read"):
        require_writable(tmp_path / "link", force=True, sources=[source])
    assert require_writable(tmp_path / "models" / "onnx", force=False, sources=[source])


# -- what is replaced --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "manifest",
    [
        {"manifest_version": 3, "name": "a browser extension"},
        {"format": 1, "sizes": {"model.onnx": 5}},
        OURS | {"sizes": ["model.onnx"]},
        OURS | {"sizes": {}, "format": 2},
        [],
    ],
)
def test_a_foreign_folder_with_a_manifest_stays(manifest: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / MANIFEST).write_text(json.dumps(manifest))
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"manifest\.json .*--force does not replace"):
        require_writable(out, force=True)
    assert names(out) == [MANIFEST, "thesis.tex"]


@pytest.mark.parametrize("foreign", ["notes.txt", "folder", "link"])
def test_files_we_did_not_write_are_never_deleted(foreign: str, tmp_path: Path) -> None:
    out = program(tmp_path / "out", link="x") if foreign == "link" else program(tmp_path / "out")
    (out / "link").unlink(missing_ok=True)
    if foreign == "folder":
        (out / foreign).mkdir()
    elif foreign == "link":  # under a name of ours
        (tmp_path / "elsewhere").touch()
        (out / foreign).symlink_to(tmp_path / "elsewhere")
    else:
        (out / foreign).touch()
    with pytest.raises(InputError, match=rf"holds {foreign}, which glm-export did not write"):
        require_writable(out, force=True)


def test_what_is_put_there_meanwhile_stays_as_well(tmp_path: Path) -> None:
    out = program(tmp_path / "out")
    with pytest.raises(InputError, match=r"holds notes\.txt"), whole_folder(out, force=True):
        (out / "notes.txt").write_text("kept")
    assert names(out) == [MANIFEST, "model.onnx", "notes.txt"]
    with pytest.raises(InputError, match="exists"), whole_folder(tmp_path / "other"):
        program(tmp_path / "other")
    assert names(tmp_path) == ["other", "out"]


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_of_ours_is_replaced(exchanges: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On disks that can exchange two names, and on those that cannot."""
    if not exchanges:
        monkeypatch.setattr(output_folder, "exchange", lambda *_: False)
    out = program(tmp_path / "out")
    with whole_folder(require_writable(out, force=True), force=True) as folder:
        (folder / "new").touch()
    assert names(out) == ["new"]
    assert names(tmp_path) == ["out"]


# -- what killed runs leave --------------------------------------------------------------------------------------------

STOPPED = """
import os, signal, sys
from pathlib import Path
from glm_export.artifacts import output_folder
name = sys.argv[2]
def stop(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if name == "after the names changed":
    output_folder._remove_replaced = stop
elif name == "between two renames":
    output_folder.exchange = lambda *_: False
    rename = Path.rename
    Path.rename = lambda path, to: stop() if path.name == ".out.partial" else rename(path, to)
elif name == "before it has the name":
    output_folder.take_name = stop
with output_folder.whole_folder(Path(sys.argv[1]), force=True) as folder:
    (folder / "model.onnx").write_text("new")
    from glm_export.artifacts.manifest import recorded_files, write_json
    write_json(folder / "manifest.json",
               {"format": 1, "signature": {}, "config": {}, "dialect": "onnx"} | recorded_files(folder))
    if name == "halfway":
        stop()
"""


@pytest.mark.parametrize(
    ("when", "replacing", "found"),
    [
        ("halfway", True, "old"),
        ("before it has the name", True, "old"),
        ("between two renames", True, "old"),
        ("after the names changed", True, "new"),
        ("halfway", False, ""),
        ("before it has the name", False, ""),
    ],
)
def test_killed_at_any_moment(when: str, replacing: bool, found: str, tmp_path: Path) -> None:
    """The old folder or the new one, whole; and the next run leaves nothing of it."""
    out = tmp_path / "out"
    if replacing:
        program(out, **{"model.onnx": "old"})
    process = subprocess.run([sys.executable, "-c", STOPPED, str(out), when], capture_output=True, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert len(names(tmp_path)) > replacing  # something is left: the next run has something to do
    assert replacing or not out.exists()
    if replacing:
        assert require_writable(out, force=True) == out
        assert (out / "model.onnx").read_text() == found
    with whole_folder(require_writable(out, force=True), force=True) as folder:
        (folder / "newest").touch()
    assert names(tmp_path) == ["out"]
    assert names(out) == ["newest"]


def test_what_bears_our_name_and_is_not_ours_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "letters").touch()
    with pytest.raises(InputError, match=r"\.out\.partial is in the way"), whole_folder(out):
        pass
    assert names(tmp_path / ".out.partial") == ["letters"]
    shutil.rmtree(tmp_path / ".out.partial")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / MARKER).touch()
    (tmp_path / ".out.partial").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"\.out\.partial is in the way"), whole_folder(out):
        pass
    assert names(tmp_path / "elsewhere") == [MARKER]


def test_the_program_of_a_killed_build_is_removed_by_the_next_run(tmp_path: Path) -> None:
    left = tmp_path / ".out.program"
    left.mkdir()
    (left / MARKER).touch()
    (left / "program").mkdir()
    (left / "program" / "model.onnx.data").touch()
    with scratch_folder(tmp_path / "out", "program") as folder:
        assert names(folder) == [MARKER]
        with whole_folder(tmp_path / "out") as inner:  # as a build does, which holds the lock already
            (inner / "made").touch()
        assert folder.is_dir()
    assert names(tmp_path) == ["out"]


def test_a_process_that_must_end_at_once_leaves_nothing(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "out") as folder:
        abandon_all()
        assert not folder.exists()
        folder.mkdir()
        (folder / MARKER).touch()


# -- the lock ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["link", "folder", "fifo"])
def test_the_lock_is_no_way_to_another_file(kind: str, tmp_path: Path) -> None:
    lock, precious = tmp_path / ".out.lock", tmp_path / "precious"
    precious.write_text("years of work")
    if kind == "link":
        lock.symlink_to(precious)
    elif kind == "folder":
        lock.mkdir()
    else:
        os.mkfifo(lock)
    with pytest.raises(InputError, match="should be a lock file"), alone(tmp_path / "out"):
        pass
    assert precious.read_text() == "years of work"


def test_a_lock_file_that_holds_something_keeps_it_until_it_goes(tmp_path: Path) -> None:
    lock = tmp_path / ".out.lock"
    lock.write_text("kept")
    with alone(tmp_path / "out"):
        assert lock.read_text() == "kept"
    assert not lock.exists()


def test_threads_of_one_process_are_two_runs(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def again() -> str:
        try:
            with alone(tmp_path / "out"):
                return "taken twice"
        except InputError as error:
            return str(error)

    with alone(tmp_path / "out"), ThreadPoolExecutor(1) as pool:
        assert again() == "taken twice"  # the same run
        assert "another run is writing" in pool.submit(again).result()
        assert (tmp_path / ".out.lock").exists()


# -- hashes ------------------------------------------------------------------------------------------------------------


def test_a_small_file_with_other_bytes_is_seen_at_once(tmp_path: Path) -> None:
    folder = program(tmp_path / "out")
    assert read_manifest(folder / MANIFEST, "export")["sha256"].keys() == {"model.onnx"}
    (folder / "model.onnx").write_text("grapH")
    with pytest.raises(CheckpointError, match=r"model\.onnx is damaged or was changed.*export again"):
        read_manifest(folder / MANIFEST, "export")


def test_a_large_file_with_other_bytes_is_seen_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glm_export.artifacts.manifest.QUICK_BYTES", 4)
    folder = program(tmp_path / "out")
    (folder / "model.onnx").write_text("grapH")
    manifest = read_manifest(folder / MANIFEST, "export")
    with pytest.raises(CheckpointError, match=r"model\.onnx is damaged or was changed"):
        require_undamaged(folder / MANIFEST, manifest, "export")
    del manifest["sha256"]
    with pytest.raises(CheckpointError, match="has no hashes"):
        require_undamaged(folder / MANIFEST, manifest, "export")


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "a/b", ".."])
def test_a_manifest_leads_nowhere_else(name: str, tmp_path: Path) -> None:
    folder = program(tmp_path / "out")
    write_json(folder / MANIFEST, OURS | {"sizes": {name: 1}})
    with pytest.raises(CheckpointError, match="plain file name"):
        read_manifest(folder / MANIFEST, "export")
    (folder / "other").touch()
    with pytest.raises(InputError):
        require_writable(folder, force=True, kinds=(Kind.PROGRAM,))
