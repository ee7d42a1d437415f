"""What is read does not change meanwhile, and what is written says what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from glm_export import api
from glm_export.artifacts.manifest import MANIFEST
from glm_export.artifacts.program import WEIGHTS
from glm_export.errors import CheckpointError, InputError
from glm_export.exporter import export as exporter
from glm_export.model_folder import file_sha256
from tests.helpers.tiny import tiny_values, write_checkpoint


@pytest.mark.parametrize("change", ["written to", "replaced", "removed"])
def test_a_source_that_changes_meanwhile_is_noticed(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its new weights would stand under the old ones' hash, or the other way round."""
    folder = write_checkpoint(tmp_path / "c", tiny_values("chatglm2"))
    weights, stored = folder / "model.safetensors", (folder / "model.safetensors").read_bytes()
    attach = exporter.attach_weights

    def changing(*arguments: Any) -> None:
        attach(*arguments)
        if change == "written to":
            weights.write_bytes(stored[:-4] + b"\0\0\0\0")
        else:
            weights.unlink()
        if change == "replaced":
            weights.write_bytes(stored)

    monkeypatch.setattr(exporter, "attach_weights", changing)
    with pytest.raises(CheckpointError, match=r"(changed|was removed) while it was read"):
        api.export(folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_every_file_has_its_hash(tmp_path: Path) -> None:
    """Made while the weights stream; bytes of them that change are found when all is read."""
    program = api.export(write_checkpoint(tmp_path / "c", tiny_values("chatglm2")), tmp_path / "out")
    others = {path.name: path for path in program.folder.iterdir() if path.name != MANIFEST}
    assert program.manifest["sha256"] == {name: file_sha256(path) for name, path in others.items()}
    program.require_undamaged()
    (data := bytearray((program.folder / WEIGHTS).read_bytes()))[100:104] = b"\xff" * 4
    (program.folder / WEIGHTS).write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.onnx\.data is damaged or was changed"):
        program.require_undamaged()


def test_nothing_is_written_into_the_checkpoint(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "c", tiny_values("chatglm2"))
    before = sorted(folder.iterdir())
    with pytest.raises(InputError, match="only read"):
        api.export(folder, folder / "onnx")
    assert sorted(folder.iterdir()) == before
