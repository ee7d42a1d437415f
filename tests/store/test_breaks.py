"""Downloads that break: gone on with where they may be, read anew where not, and never half under a good name."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from glm_export.artifacts.manifest import MANIFEST
from glm_export.artifacts.program import WEIGHTS
from glm_export.errors import CheckpointError, EnvironmentMissingError
from glm_export.store import download
from glm_export.store.cache import Cache, View
from tests.helpers.folder_server import FolderServer, files_of, serving_folder
from tests.store.conftest import blobs

Fetch = Callable[[str], View]
Files = dict[str, bytes]
ROOT = Path(__file__).parents[2]
FETCH = "import sys; from glm_export.artifacts.open import located; print(located(sys.argv[1]))"


def another_process(url: str) -> subprocess.Popen[str]:
    """One that fetches into the same cache."""
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=ROOT,
    )  # fmt: skip


def shard_of(files: Files) -> str:
    return next(name for name in files if name.startswith("model-00001"))


def large(files: Files) -> tuple[Files, str]:
    """A checkpoint with one shard of some megabytes, which nothing reads."""
    name = shard_of(files)
    return files | {name: os.urandom(3 << 20)}, name


def starts(server: FolderServer, name: str) -> list[int]:
    """Where each answer to a file began."""
    return [int(part.removeprefix("bytes=").rstrip("-")) if part else 0 for part in server.bodies(name)]


@pytest.mark.parametrize("listed", [True, False], ids=["by a manifest", "by the store alone"])
def test_what_breaks_off_is_gone_on_with(
    listed: bool, demo_files: Files, checkpoint_files: Files, fetch: Fetch
) -> None:
    files, name = (demo_files, WEIGHTS) if listed else large(checkpoint_files)
    step = len(files[name]) // 3
    with serving_folder(files) as server:
        server.cuts[name] = [step, step]
        view = fetch(server.url)
        assert (view.folder / name).read_bytes() == files[name]
        first, second, third = starts(server, name)
        # Of what was sent before a break the last of it may not have arrived.
        assert 0 == first < second <= step
        assert second < third <= 2 * step
        # The server is told of which bytes a part is wanted, where no hash will tell.
        assert server.conditions == [None if listed else server.tag(name)] * 2


def test_a_server_without_parts_sends_all_again(demo_files: Files, fetch: Fetch) -> None:
    with serving_folder(demo_files) as server:
        server.ranges = False
        server.cuts[WEIGHTS] = [1 << 20]
        assert files_of(fetch(server.url).folder) == demo_files
        first, second = starts(server, WEIGHTS)
        assert first < second


def test_a_server_that_always_breaks_is_given_up_and_what_came_is_kept(demo_files: Files, fetch: Fetch) -> None:
    with serving_folder(demo_files) as server:
        server.cuts[WEIGHTS] = [1 << 20, *[0] * 20]
        with pytest.raises(EnvironmentMissingError, match="what arrived is kept: run it again"):
            fetch(server.url)
        server.cuts.clear()
        server.asked.clear()
        fetch(server.url)
        (began,) = starts(server, WEIGHTS)
        assert 0 < began <= 1 << 20


@pytest.mark.parametrize("tags", [True, False], ids=["ETag", "no mark"])
def test_two_versions_are_never_mixed(tags: bool, checkpoint_files: Files, fetch: Fetch, cache: Cache) -> None:
    files, name = large(checkpoint_files)
    data = files[name]
    other = data[::-1]
    with serving_folder(files) as server:
        server.tags = tags
        server.cuts[name] = [len(data) // 2, *[0] * 20]
        with pytest.raises(EnvironmentMissingError):
            fetch(server.url)
        server.cuts.clear()
        server.files[name] = other
        view = fetch(server.url)
        assert (view.folder / name).read_bytes() == other
        # Without a mark there is nothing to hold a part to.
        assert server.bodies(name)[-1] is None
    assert all(hashlib.sha256((cache.blobs / blob).read_bytes()).hexdigest() == blob for blob in blobs(cache))


def test_a_change_in_the_middle_of_a_file_is_seen(checkpoint_files: Files, fetch: Fetch) -> None:
    files, name = large(checkpoint_files)
    data = files[name]
    with serving_folder(files) as server:
        server.cuts[name] = [len(data) // 2]
        server.change_after[name] = data[::-1]
        view = fetch(server.url)
        assert (view.folder / name).read_bytes() == data[::-1]


def test_a_damaged_part_of_an_earlier_run_is_read_anew(demo_files: Files, fetch: Fetch, cache: Cache) -> None:
    with serving_folder(demo_files) as server:
        server.cuts[WEIGHTS] = [1 << 20, *[0] * 20]
        with pytest.raises(EnvironmentMissingError):
            fetch(server.url)
        server.cuts.clear()
        (part,) = cache.root.rglob(f"partial/{WEIGHTS}")
        part.write_bytes(bytes(part.stat().st_size))
        assert files_of(fetch(server.url).folder) == demo_files
        *_, with_part, without = starts(server, WEIGHTS)
        assert with_part > without == 0


@pytest.mark.parametrize("listed", [True, False], ids=["by a manifest", "by the store alone"])
def test_killed_in_the_middle_and_run_again(
    listed: bool, demo_files: Files, checkpoint_files: Files, fetch: Fetch, cache: Cache
) -> None:
    files, name = (demo_files, WEIGHTS) if listed else large(checkpoint_files)
    with serving_folder(files) as server:
        server.hold[name] = len(files[name]) // 2
        process = another_process(server.url)
        assert server.held.wait(30)
        (part,) = cache.root.rglob(f"partial/{name}")
        while part.stat().st_size < 1 << 20:
            assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        # Nothing that looks whole; and nobody holds the lock.
        assert cache.views() == []
        assert hashlib.sha256(files[name]).hexdigest() not in blobs(cache)
        server.go_on.set()
        server.asked.clear()
        view = fetch(server.url)
        assert (view.folder / name).read_bytes() == files[name]
        (began,) = server.bodies(name)
        # Where the hash is known beforehand every byte counts; else those that were surely on disk, here none.
        assert (began is not None) == listed


def test_what_is_surely_on_disk_counts_without_a_hash(
    checkpoint_files: Files, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "SAVED_BYTES", 1 << 10)
    files, name = large(checkpoint_files)
    half = len(files[name]) // 2
    with serving_folder(files) as server:
        server.cuts[name] = [half, *[0] * 20]
        with pytest.raises(EnvironmentMissingError):
            fetch(server.url)
        server.cuts.clear()
        view = fetch(server.url)
        assert 0 < starts(server, name)[-1] <= half
        assert (view.folder / name).read_bytes() == files[name]


def test_processes_at_once_fetch_once(demo_files: Files, cache: Cache) -> None:
    with serving_folder(demo_files) as server:
        server.hold[WEIGHTS] = 1 << 20
        first = another_process(server.url)
        assert server.held.wait(30)
        second = another_process(server.url)
        assert second.stderr is not None
        # It says that it waits, before anything goes on.
        assert "waiting for it" in second.stderr.readline()
        server.go_on.set()
        said = {process.communicate(timeout=30)[0] for process in (first, second)}
        assert [process.returncode for process in (first, second)] == [0, 0]
        assert len(said) == 1
        # The manifest is asked for again by whoever waited: it may have changed.
        others = demo_files.keys() - {MANIFEST}
        assert [server.bodies(name) for name in others] == [[None]] * len(others)
    assert len(cache.views()) == 1


def test_processes_with_caches_of_their_own_fetch_twice(demo_files: Files, fetch: Fetch, tmp_path: Path) -> None:
    """The control of the test above: its counter counts."""
    from glm_export.artifacts.open import view_of

    with serving_folder(demo_files) as server:
        for name in ("one", "two"):
            view_of(server.url, cache=tmp_path / name)
        assert len(server.bodies(WEIGHTS)) == 2


def test_a_full_disk_is_said_before_anything_is_read(
    demo_files: Files, fetch: Fetch, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = __import__("shutil").disk_usage(".")
    monkeypatch.setattr("glm_export.store.opening.shutil.disk_usage", lambda _: usage._replace(free=1 << 20))
    with serving_folder(demo_files) as server:
        with pytest.raises(EnvironmentMissingError, match=r"needs 0\.01 GB, and the disk of the cache"):
            fetch(server.url)
        assert server.bodies(WEIGHTS) == []


def test_a_cut_off_file_is_not_taken_for_whole(checkpoint_files: Files, fetch: Fetch, cache: Cache) -> None:
    name = shard_of(checkpoint_files)
    with serving_folder(checkpoint_files) as server:
        server.cuts[name] = [100] * 40
        server.ranges = False
        with pytest.raises((EnvironmentMissingError, CheckpointError)):
            fetch(server.url)
    assert cache.views() == []
    assert hashlib.sha256(checkpoint_files[name][:100]).hexdigest() not in blobs(cache)
