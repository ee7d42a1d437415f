"""Folders to fetch, and a cache of each test's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from glm_export.artifacts.open import view_of
from glm_export.artifacts.program import OnnxProgram
from glm_export.store import opening, remote
from glm_export.store.cache import CACHE_VARIABLE, Cache, View
from tests.helpers.folder_server import files_of
from tests.helpers.tiny import tiny_values, write_checkpoint


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    """Its own, empty; and nothing is waited for long."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr("glm_export.store.download.FIRST_WAIT_SECONDS", 0.01)
    return Cache()


@pytest.fixture
def fetch(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], View]:
    """Fetch as another process would, which remembers nothing."""

    def anew(url: str) -> View:
        monkeypatch.setattr(opening, "_opened", {})
        return view_of(url)

    return anew


@pytest.fixture(scope="session")
def demo_files(demo_program: OnnxProgram) -> dict[str, bytes]:
    """Of the embedded model's program."""
    return files_of(demo_program.folder)


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint in three shards, with files beside it that no model is read from."""
    folder = write_checkpoint(tmp_path_factory.mktemp("published") / "tiny", tiny_values("glm4"), shards=3)
    (folder / "optimizer.pt").write_bytes(b"a pickle")
    (folder / "README.md").write_text("read me")
    (folder / "generation_config.json").write_text("{}")
    return folder


@pytest.fixture(scope="session")
def checkpoint_files(checkpoint_folder: Path) -> dict[str, bytes]:
    """Of that."""
    return files_of(checkpoint_folder)


def blobs(cache: Cache) -> list[str]:
    """What is in the cache under the name of its bytes."""
    return sorted(path.name for path in cache.blobs.iterdir()) if cache.blobs.is_dir() else []
