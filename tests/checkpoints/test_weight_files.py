"""Which weights are read, under which names: as transformers reads them, whatever was saved around them."""

from __future__ import annotations

import json
import shutil
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from glm_export.checkpoints.checkpoint import open_checkpoint
from glm_export.errors import CheckpointError
from tests.helpers.tiny import random_tensors, tiny_values, write_checkpoint

NAME = "model.norm.weight"
VALUES = tiny_values("glm4")
OLD, NEW = random_tensors(VALUES, seed=0), random_tensors(VALUES, seed=1)


def read(folder: Path) -> Tensor:
    checkpoint = open_checkpoint(folder)
    checkpoint.audit()
    return checkpoint.tensor(NAME)


@pytest.mark.parametrize(
    ("old", "shards"), [("pytorch_model.bin", 3), ("pytorch_model.bin", 1), ("model.safetensors", 3)]
)
def test_a_fine_tune_saved_into_its_base(tmp_path: Path, old: str, shards: int) -> None:
    """The order of transformers' ``_get_resolved_checkpoint_files``: a whole file before an index."""
    write_checkpoint(tmp_path, VALUES, OLD, layout=old, shards=shards)
    write_checkpoint(tmp_path, VALUES, NEW)
    assert torch.equal(read(tmp_path), NEW[NAME])
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.read.told_by == "model.safetensors"
    assert any(name.startswith(old.split(".")[0]) for name in checkpoint.read.unread)
    (tmp_path / "model.safetensors").unlink()
    assert torch.equal(read(tmp_path), OLD[NAME])


def test_an_index_whose_shards_are_gone(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, VALUES, OLD, shards=2)
    for shard in tmp_path.glob("model-0*"):
        shard.unlink()
    with pytest.raises(CheckpointError, match="download the missing shards"):
        read(tmp_path)
    write_checkpoint(tmp_path, VALUES, NEW)
    assert torch.equal(read(tmp_path), NEW[NAME])


def test_shards_without_their_index(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, VALUES, OLD, shards=2)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match="read by their index"):
        read(tmp_path)


def test_a_trainers_own_files_are_not_weights(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, VALUES, OLD)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        torch.save({}, tmp_path / name)
    assert open_checkpoint(tmp_path).read.unread == ()


def test_a_pointer_of_git_lfs(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, VALUES, OLD)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345678\n"
    (tmp_path / "model.safetensors").write_text(pointer)
    with pytest.raises(CheckpointError, match="git lfs pull"):
        read(tmp_path)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "base_model.model.", "model.module.", "_fsdp_wrapped_module."]
)
def test_prefixes(tmp_path: Path, prefix: str) -> None:
    write_checkpoint(tmp_path, VALUES, {prefix + name: tensor for name, tensor in OLD.items()})
    assert torch.equal(read(tmp_path), OLD[NAME])
    assert "taken off" in " ".join(open_checkpoint(tmp_path).notes)


def test_wrappers_inside_names(tmp_path: Path) -> None:
    """FSDP wraps layers one by one."""
    wrapped = {name.replace(".layers.0.", ".layers.0._fsdp_wrapped_module."): tensor for name, tensor in OLD.items()}
    assert wrapped.keys() != OLD.keys()
    write_checkpoint(tmp_path, VALUES, wrapped)
    checkpoint = open_checkpoint(tmp_path)
    checkpoint.audit()
    assert checkpoint.sources.keys() == OLD.keys()


def test_the_bare_decoder(tmp_path: Path) -> None:
    """``AutoModel`` saves without ``model.`` before its names."""
    values = tiny_values("glm")
    tensors = random_tensors(values)
    write_checkpoint(tmp_path, values, {name.removeprefix("model."): tensor for name, tensor in tensors.items()})
    assert torch.equal(read(tmp_path), tensors[NAME])


@pytest.mark.parametrize("wrap", ["module", "state_dict", "model"])
@pytest.mark.parametrize("legacy", [False, True])
def test_wrapped_and_legacy_pickles(tmp_path: Path, wrap: str, legacy: bool) -> None:
    write_checkpoint(tmp_path, VALUES, OLD, layout="pytorch_model.bin")
    saved: dict[str, Any] = {wrap: OrderedDict(OLD), "epoch": 3, "global_step": 7}
    torch.save(saved, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    assert torch.equal(read(tmp_path), OLD[NAME])
    assert open_checkpoint(tmp_path).resident_bytes == (
        (tmp_path / "pytorch_model.bin").stat().st_size if legacy else 0
    )


def test_parameters_and_what_is_no_state_dict(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, VALUES, OLD, layout="pytorch_model.bin")
    torch.save({name: nn.Parameter(t) for name, t in OLD.items()}, tmp_path / "pytorch_model.bin")
    assert torch.equal(read(tmp_path), OLD[NAME])
    torch.save({"state_dict": OLD, "model": NEW}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="nothing says which are meant"):
        read(tmp_path)
    torch.save([1, 2], tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="should map names to tensors"):
        read(tmp_path)


def test_two_names_for_one_tensor(tmp_path: Path) -> None:
    twice = OLD | {f"_orig_mod.{NAME}": OLD[NAME].clone()}
    write_checkpoint(tmp_path, VALUES, twice)
    assert torch.equal(read(tmp_path), OLD[NAME])
    write_checkpoint(tmp_path, VALUES, twice | {f"_orig_mod.{NAME}": NEW[NAME]})
    with pytest.raises(CheckpointError, match=r"both model\.norm\.weight, and differ"):
        read(tmp_path)


def resized(tensors: dict[str, Tensor], rows: int) -> dict[str, Tensor]:
    return {name: torch.zeros(rows, 64) if tensor.shape[0] == 320 else tensor for name, tensor in tensors.items()}


HINTS: list[tuple[str, str, Callable[[dict[str, Tensor]], dict[str, Tensor]]]] = [
    ("glm4", "set vocab_size to 333", lambda tensors: resized(tensors, 333)),
    ("chatglm2", "set padded_vocab_size to 333", lambda tensors: resized(tensors, 333)),
    (
        "glm4",
        "merge_and_unload",
        lambda tensors: tensors | {"model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(1)},
    ),
    ("glm4", "is a classifier", lambda tensors: tensors | {"score.weight": torch.zeros(2, 64)}),
    ("glm4", "tie_word_embeddings to true", lambda t: {name: v for name, v in t.items() if name != "lm_head.weight"}),
]


@pytest.mark.parametrize(("family", "hint", "change"), HINTS, ids=[hint for _, hint, _ in HINTS])
def test_what_is_known_to_happen_is_told_with_its_step(
    tmp_path: Path, family: str, hint: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> None:
    values = tiny_values(family)
    write_checkpoint(tmp_path, values, change(random_tensors(values)))
    with pytest.raises(CheckpointError, match=hint):
        open_checkpoint(tmp_path).audit()


def test_unexpected_names_come_first(tmp_path: Path) -> None:
    """They are the clue: a file of another model lacks everything."""
    write_checkpoint(tmp_path, VALUES, {f"encoder.block.{i}.w": torch.zeros(1) for i in range(40)})
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(tmp_path).audit()
    text = str(error.value)
    assert text.index("unexpected ") < text.index("missing ")
    assert "36 more unexpected names" in text


def test_packed_experts_of_transformers_5(tmp_path: Path) -> None:
    """As one by one: the values are compared with transformers' logits in ``tests/proof/test_folders.py``."""
    values = tiny_values("glm4_moe")
    tensors = random_tensors(values)
    prefix = "model.layers.1.mlp.experts"
    packed = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
    every = range(values["n_routed_experts"])
    packed[f"{prefix}.gate_up_proj"] = torch.stack(
        [torch.cat([tensors[f"{prefix}.{e}.{part}_proj.weight"] for part in ("gate", "up")]) for e in every]
    )
    packed[f"{prefix}.down_proj"] = torch.stack([tensors[f"{prefix}.{e}.down_proj.weight"] for e in every])
    one, other = (
        open_checkpoint(write_checkpoint(tmp_path / n, values, t)) for n, t in (("a", tensors), ("b", packed))
    )
    other.audit()
    for (name, found), (_, expected) in zip(other.parameters(), one.parameters(), strict=True):
        assert torch.equal(found, expected), name
    packed[f"{prefix}.down_proj"] = packed[f"{prefix}.down_proj"][0]
    with pytest.raises(CheckpointError, match="a layer's experts"):
        open_checkpoint(write_checkpoint(tmp_path / "c", values, packed))


def test_stop_ids_of_the_generation_config_are_in_force(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, VALUES, OLD)
    path = tmp_path / "generation_config.json"
    for written, expected in ((7, (7,)), ([7, 8], (7, 8)), (None, (300, 301, 302))):
        path.write_text(json.dumps({"eos_token_id": written}))
        assert open_checkpoint(tmp_path).config.eos_token_ids == expected
    path.write_text(json.dumps({"eos_token_id": "</s>"}))
    with pytest.raises(CheckpointError, match=r"generation_config\.json has eos_token_id = '</s>'"):
        open_checkpoint(tmp_path)


def test_a_folder_of_links(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "real", VALUES, OLD)
    (tmp_path / "links").mkdir()
    for path in (tmp_path / "real").iterdir():
        (tmp_path / "links" / path.name).symlink_to(path)
    assert torch.equal(read(tmp_path / "links"), OLD[NAME])
    shutil.rmtree(tmp_path / "real")
    with pytest.raises(CheckpointError, match="not there"):
        read(tmp_path / "links")
