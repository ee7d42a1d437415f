"""Models in a Hugging Face cache, laid out by ``huggingface_hub``'s own rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from glm_export import api
from glm_export.artifacts.open import open_artifact
from glm_export.errors import InputError
from tests.helpers.tiny import tiny_values, write_checkpoint

REVISION = "0" * 39 + "1"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``models--ORG--NAME`` with blobs and one snapshot of links into them."""
    root = tmp_path / "hub" / "models--THUDM--tiny"
    snapshot, blobs = root / "snapshots" / REVISION, root / "blobs"
    write_checkpoint(tmp_path / "plain", tiny_values("glm4"))
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for index, path in enumerate(sorted((tmp_path / "plain").iterdir())):
        path.rename(blobs / str(index))
        (snapshot / path.name).symlink_to(f"../../blobs/{index}")
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(REVISION)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return root


@pytest.mark.parametrize("form", ["root", "snapshot", "name", "revision"])
def test_every_way_to_name_it(cache: Path, form: str) -> None:
    source = {
        "root": cache,
        "snapshot": cache / "snapshots" / REVISION,
        "name": "THUDM/tiny",
        "revision": f"THUDM/tiny@{REVISION}",
    }[form]
    assert open_artifact(source).path.resolve() == (cache / "snapshots" / REVISION).resolve()
    checkpoint = api.open_checkpoint(source)
    checkpoint.audit()
    assert checkpoint.config.family == "glm4"


def test_what_is_not_there_is_not_downloaded(cache: Path) -> None:
    with pytest.raises(InputError, match="hf download THUDM/other' first"):
        open_artifact("THUDM/other")
    with pytest.raises(InputError, match="hf download THUDM/tiny --revision v2'"):
        open_artifact("THUDM/tiny@v2")
    with pytest.raises(InputError, match="is no folder"):
        open_artifact(cache.parent / "nothing" / "of" / "it")
    (cache / "refs" / "main").unlink()
    assert open_artifact(cache).path.name == REVISION
    (cache / "snapshots" / "another").mkdir()
    with pytest.raises(InputError, match="one of its snapshots"):
        open_artifact(cache)
