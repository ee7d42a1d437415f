"""One door: every kind of folder is told from every other, and from what only looks like one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from glm_export import api
from glm_export.artifacts.open import TOLD_BY, Artifact, Kind, kind_of, open_artifact, require_checkpoint
from glm_export.deployment.build import build
from glm_export.embedded import FOLDERS
from glm_export.errors import GlmExportError, InputError
from tests.helpers.golden_data import Golden

WRITTEN = {
    Kind.ENGINE: ("engine.json", "engine.plan", "config.json"),
    Kind.PROGRAM: ("manifest.json", "model.onnx", "config.json"),
    Kind.RANGES: ("ranges.json", "ranges.safetensors"),
    Kind.TRITON: ("triton.json", "config.pbtxt"),
    Kind.LAYOUT: ("layout.json", "config.json", "tokenizer.json"),
    Kind.ADAPTER: ("adapter_config.json", "adapter_model.safetensors"),
    Kind.CHECKPOINT: ("config.json", "model.safetensors"),
}


def folder_of(path: Path, *names: str) -> Path:
    path.mkdir()
    for name in names:
        (path / name).write_text("{}")
    return path


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_is_told(kind: Kind, tmp_path: Path) -> None:
    """By one file alone: without it the folder is something else."""
    folder = folder_of(tmp_path / "folder", *WRITTEN[kind])
    assert kind_of(folder) is kind
    assert open_artifact(folder) == open_artifact(str(folder)) == Artifact(kind=kind, path=folder)
    (folder / TOLD_BY[kind]).unlink()
    assert kind_of(folder) is not kind


def test_an_adapter_saved_beside_its_base_is_an_adapter(tmp_path: Path) -> None:
    """As transformers reads such a folder: weights there are not those the publisher of the base meant."""
    folder = folder_of(tmp_path / "both", *WRITTEN[Kind.ADAPTER], *WRITTEN[Kind.CHECKPOINT])
    assert kind_of(folder) is Kind.ADAPTER


def test_embedded_models_have_names_and_a_folder_of_that_name_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_artifact("demo") == Artifact(kind=Kind.CHECKPOINT, path=FOLDERS["demo"])
    folder_of(tmp_path / "demo", *WRITTEN[Kind.PROGRAM])
    assert open_artifact("demo") == Artifact(kind=Kind.PROGRAM, path=Path("demo"))


def test_what_only_looks_like_one_is_told_what_was_looked_for(tmp_path: Path) -> None:
    looks = folder_of(tmp_path / "looks", "model.onnx", "model.safetensors", "adapter_model.bin", "ranges.safetensors")
    for name in TOLD_BY.values():
        (looks / name).mkdir()  # a folder of that name says nothing
    assert kind_of(looks) is None
    for name in TOLD_BY.values():
        (looks / name).rmdir()
    with pytest.raises(InputError, match=r"looked for engine\.json \(engine\), .*config\.json \(checkpoint\)") as error:
        open_artifact(looks)
    assert "found adapter_model.bin, model.onnx, model.safetensors, ranges.safetensors; give" in str(error.value)
    with pytest.raises(InputError, match="found an empty folder"):
        open_artifact(folder_of(tmp_path / "empty"))
    with pytest.raises(InputError, match=r"found 0, 1, 2, 3, 4, 5 and 3 more"):
        open_artifact(folder_of(tmp_path / "many", *map(str, range(9))))
    for nowhere in (tmp_path / "nowhere", looks / "model.onnx"):
        assert kind_of(nowhere) is None
        with pytest.raises(InputError, match="is no folder"):
            open_artifact(nowhere)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Kind.ENGINE, "is an exported folder; a checkpoint is expected here, the folder it was made from"),
        (Kind.PROGRAM, "is an exported folder; a checkpoint is expected here, the folder it was made from"),
        (Kind.RANGES, "is a folder of ranges; a checkpoint is expected here, the one they were measured on"),
        (Kind.ADAPTER, r"is a PEFT adapter \(adapter_config.json\) of .*--adapter"),
    ],
)
def test_where_a_checkpoint_is_expected_every_other_kind_is_refused(kind: Kind, message: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "folder", *WRITTEN[kind])
    with pytest.raises(InputError, match=message):
        require_checkpoint(open_artifact(folder))
    with pytest.raises(InputError, match=message):
        api.open_checkpoint(folder)
    with pytest.raises(GlmExportError):
        api.export(folder, tmp_path / "out")
    checkpoint = Golden("chatglm2").folder
    assert require_checkpoint(open_artifact(checkpoint)) == checkpoint


def test_an_adapter_is_refused_by_whatever_would_run_or_build_it(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "adapter", *WRITTEN[Kind.ADAPTER])
    with pytest.raises(InputError, match="--adapter"):
        api.load_session(folder)
    pytest.importorskip("tensorrt_rtx_bindings")
    with pytest.raises(InputError, match="--adapter"):
        build(folder, tmp_path / "out", runtime="tensorrt-rtx")


def test_asking_needs_neither_torch_nor_onnx() -> None:
    script = (
        "import sys\nfrom glm_export.artifacts.open import open_artifact\nopen_artifact('demo')\n"
        "sys.exit(', '.join({'torch', 'onnx', 'onnxruntime', 'numpy'} & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
