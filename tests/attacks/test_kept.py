"""Inputs that once ended in a traceback, a hang or silence, one of each kind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from glm_export import api, families
from glm_export.artifacts.program import load_program
from glm_export.calibration.ranges import load_ranges
from glm_export.checkpoints.checkpoint import open_checkpoint
from glm_export.checkpoints.formats import open_torch
from glm_export.deployment.inspect import inspect_folder
from glm_export.errors import CheckpointError, EnvironmentMissingError, GlmExportError, InputError
from glm_export.exporter import plan
from glm_export.model_folder import inside
from glm_export.tokenizers import load_tokenizer
from tests.attacks import mutate
from tests.helpers.golden_data import GOLDEN
from tests.helpers.tiny import random_tensors, tiny_values, write_checkpoint

BEFORE, FOLDERS = GOLDEN / "written_before", GOLDEN / "folders"
NOT_TENSORS = {"sparse", "csr", "meta", "conjugate", "complex", "quantized", "vast", "a list", "None", "a text"}
TENSORS = mutate.odd_tensors(torch.arange(6.0).view(2, 3))


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("name", TENSORS)
def test_tensors_of_a_torch_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save({"weight": TENSORS[name](), "other": torch.ones(1)}, path)
    if name in NOT_TENSORS:
        with pytest.raises(CheckpointError):
            open_torch(path)
        return
    found = open_torch(path)["weight"]
    assert torch.equal(found.float().nan_to_num(), TENSORS[name]().detach().float().nan_to_num())
    assert not found.requires_grad
    found.numpy() if found.dtype in (torch.float32, torch.float64) else None


@pytest.mark.parametrize("name", [1, 2.5, None, b"weight", ("weight",)])
def test_names_of_a_torch_file_are_texts(name: Any, tmp_path: Path) -> None:
    torch.save({name: torch.ones(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"should map names to tensors|more than tensors"):
        open_torch(tmp_path / "pytorch_model.bin")


def test_a_packed_torch_file_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    mutate.zip_bomb(path)
    assert path.stat().st_size < 2 << 20
    with pytest.raises(CheckpointError, match="packed entry"):
        open_torch(path)


def test_names_no_file_system_has(tmp_path: Path) -> None:
    for name in ("x" * 300, "a\0b", "../a", "/etc/passwd"):
        with pytest.raises(CheckpointError, match="not a plain file name"):
            inside(tmp_path, name)


@pytest.mark.parametrize(
    "change",
    [
        {"rank_pattern": 5},
        {"alpha_pattern": ["q_proj"]},
        {"alpha_pattern": {"q_proj": "8"}},
        {"rank_pattern": {"(a+)+$": 4}},
        {"rank_pattern": {".*.*.*.*.*.*.*.*x": 4}},
        {"rank_pattern": {"(": 4}},
        {"r": True},
        {"lora_alpha": 1e300},
    ],
    ids=str,
)
def test_settings_of_an_adapter(change: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(FOLDERS / "lora_plain", tmp_path / "lora")
    path = tmp_path / "lora" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError):
        open_checkpoint(FOLDERS / "lora_base", adapters=[tmp_path / "lora"])


def changed_tensors(folder: Path, ending: str, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    """Change every tensor of a folder's ranges whose name ends so."""
    tensors = load_file(folder / "ranges.safetensors")
    names = [name for name in tensors if name.endswith(ending)]
    assert names
    save_file(tensors | {name: change(tensors[name]) for name in names}, folder / "ranges.safetensors")
    return folder


@pytest.fixture
def ranges(tmp_path: Path) -> Path:
    shutil.copytree(BEFORE / "ranges", tmp_path / "ranges")
    return tmp_path / "ranges"


@pytest.mark.parametrize("ending", ["/thresholds", "/channel_maxima", "/maximum", "/smoothquant", "/levelled"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 0.0])
def test_nonsense_among_ranges(ending: str, value: float, ranges: Path) -> None:
    changed_tensors(ranges, ending, lambda tensor: np.full_like(tensor, value))
    if value == 0 and ending in ("/channel_maxima", "/maximum"):
        assert load_ranges(ranges)  # a channel may be dead
        return
    with pytest.raises(CheckpointError, match="is damaged"):
        load_ranges(ranges)


def test_missing_ranges(ranges: Path) -> None:
    tensors = load_file(ranges / "ranges.safetensors")
    for name in ("layers.0.key/thresholds", "layers.1.mlp.down.weight/thresholds"):
        save_file({key: value for key, value in tensors.items() if key != name}, ranges / "ranges.safetensors")
        with pytest.raises(CheckpointError, match=r"missing|layers"):
            load_ranges(ranges)


def test_ranges_of_another_size(ranges: Path) -> None:
    config = open_checkpoint(BEFORE / "checkpoint").config
    load_ranges(ranges).require_shapes(config)
    changed_tensors(ranges, "attention.qkv.weight/channel_maxima", lambda tensor: tensor[:32].copy())
    with pytest.raises(InputError, match=r"\[32\], expected 64 channels"):
        load_ranges(ranges).require_shapes(config)


@pytest.mark.parametrize("key", ["checkpoint", "family", "device", "rounded_for", "layers", "corpus"])
def test_a_manifest_of_ranges_that_lacks_something(key: str, ranges: Path) -> None:
    values = json.loads((ranges / "ranges.json").read_text())
    del values[key]
    (ranges / "ranges.json").write_text(json.dumps(values))
    with pytest.raises(GlmExportError):
        inspect_folder(ranges)


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": []}, {"logits": 5}, {"dialect": {}}, {"recipe": 1}, {"config": []}, {"signature": None},
        {"signature": {"inputs": [], "outputs": []}}, {"sizes": 5}, {"format": []},
    ],
    ids=str,
)  # fmt: skip
def test_a_manifest_of_a_program(change: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(BEFORE / "onnx", tmp_path / "onnx")
    path = tmp_path / "onnx" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(GlmExportError):
        load_program(tmp_path / "onnx")


@pytest.mark.parametrize("damage", [b"", b"\x08\xff", bytes(300)], ids=["empty", "cut", "zeros"])
def test_scales_beside_a_program(damage: bytes, tmp_path: Path) -> None:
    shutil.copytree(BEFORE / "onnx-int8-kv", tmp_path / "onnx")
    (path,) = (tmp_path / "onnx").glob("*.safetensors")
    path.write_bytes(damage)
    manifest = tmp_path / "onnx" / "manifest.json"
    values = json.loads(manifest.read_text())
    values["sizes"][path.name] = len(damage)
    manifest.write_text(json.dumps(values))
    with pytest.raises(GlmExportError):
        api.load_session(tmp_path / "onnx")


@pytest.mark.parametrize(
    ("name", "file", "data"),
    [
        ("glm4_remote", "tokenizer.model", b""),
        ("glm4_remote", "tokenizer.model", b"IQ== 0\nIg== 0\n"),
        ("chatglm2", "tokenizer.model", bytes(500)),
        ("chatglm", "ice_text.model", b"\x0a\x03\x0a\x01\x80"),
        ("glm", "cog-pretrain.model", b"\xff" * 99),
    ],
)
def test_tokenizer_files(name: str, file: str, data: bytes, tmp_path: Path) -> None:
    """Among them a panic of Rust, which is no Exception."""
    shutil.copytree(GOLDEN / name, tmp_path / name)
    (tmp_path / name / file).write_bytes(data)
    config = families.read_config(json.loads((GOLDEN / name / "config.json").read_text()))
    with pytest.raises(CheckpointError):
        load_tokenizer(tmp_path / name, config)


def test_pieces_that_are_no_text(tmp_path: Path) -> None:
    """SentencePiece hands them over as they are."""
    shutil.copytree(GOLDEN / "chatglm2", tmp_path / "model")
    path = tmp_path / "model" / "tokenizer.model"
    data = path.read_bytes()
    assert data.count(b"\x0a\x05<unk>") == 1
    path.write_bytes(data.replace(b"\x0a\x05<unk>", b"\x0a\x05\x80unk>"))
    config = families.read_config(json.loads((GOLDEN / "chatglm2" / "config.json").read_text()))
    with pytest.raises(CheckpointError):
        load_tokenizer(tmp_path / "model", config)


@pytest.mark.parametrize(
    ("folder", "suffix", "change"),
    [
        ("gptq_native", "qweight", lambda tensor: tensor.float()),
        ("gptq_native", "qweight", lambda tensor: tensor.sum()),
        ("gptq_native", "scales", lambda tensor: tensor.sum()),
        ("gptq_native", "qzeros", lambda tensor: tensor.float()),
        ("fp8_ct_native", "weight_scale", lambda tensor: tensor[:0]),
    ],
)
def test_parts_of_a_quantized_weight(
    folder: str, suffix: str, change: Callable[[torch.Tensor], torch.Tensor], tmp_path: Path
) -> None:
    from safetensors.torch import load_file as load, save_file as save

    shutil.copytree(FOLDERS / folder, tmp_path / folder)
    path = tmp_path / folder / "model.safetensors"
    tensors = load(path)
    name = next(name for name in tensors if name.endswith(f".{suffix}"))
    save(tensors | {name: change(tensors[name]).clone()}, path)
    with pytest.raises(CheckpointError):
        list(open_checkpoint(tmp_path / folder).parameters())


@pytest.mark.parametrize("value", ["", 0.5, True, [0.5], ["2"], {}, [None]], ids=str)
@pytest.mark.parametrize("key", ["eos_token_id", "pad_token_id"])
def test_token_ids_of_a_generation_config(key: str, value: Any, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tiny_values("glm4"))
    (tmp_path / "generation_config.json").write_text(json.dumps({key: value}))
    with pytest.raises(CheckpointError, match=f"has {key} = "):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("role", ["(", "a[", "*", "user)"])
def test_a_role_is_no_expression(role: str, tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "chatglm3", tmp_path / "model")
    path = tmp_path / "model" / "tokenizer_config.json"
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% endfor %}"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    tokenizer = load_tokenizer(tmp_path / "model", open_checkpoint(GOLDEN / "chatglm3").config)
    with pytest.raises(InputError, match="role"):
        tokenizer.chat([{"role": role, "content": "x"}])


def test_an_export_that_no_memory_here_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path / "model", tiny_values("glm4"), random_tensors(tiny_values("glm4")))
    monkeypatch.setattr(plan, "total_memory", lambda: 100 << 20)
    with pytest.raises(EnvironmentMissingError, match=r"needs about 0\.5 GB of memory, and this machine has 0\.1 GB"):
        plan.plan_export(open_checkpoint(tmp_path / "model"), tmp_path / "out", "float32")


def test_ranges_of_more_layers_than_memory_holds(tmp_path: Path) -> None:
    """Found by the guided attack: a name was made for each before they were counted."""
    shutil.copytree(BEFORE / "ranges", tmp_path / "ranges")
    path = tmp_path / "ranges" / "ranges.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"layers": 1 << 31}))
    with pytest.raises(CheckpointError, match="it has 2 of 2147483648 layers"):
        load_ranges(tmp_path / "ranges")
