"""P-Tuning v2: what a prefix encoder becomes gives the logits of the publisher's code, and nothing else does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from glm_export.checkpoints.checkpoint import Checkpoint, open_checkpoint
from glm_export.checkpoints.prefix import KeyValue, open_prefix
from glm_export.errors import CheckpointError
from glm_export.inputs.prompts import Prompt, prefill_feeds, prefix_prompt
from glm_export.sessions.torch import load_reference
from tests.helpers.golden_data import BOUND, difference
from tests.helpers.golden_folders import folder, golden_of

FULL = ("ptuning_full_chatglm2", "ptuning_proj_chatglm2", "ptuning_full_chatglm")
ALONE = {"ptuning_full_chatglm2": "ptuning_only_chatglm2", "ptuning_full_chatglm": "ptuning_only_chatglm"}
EMBEDDING = "transformer.prefix_encoder.embedding.weight"
Cache = tuple[KeyValue, ...]


def off_by(checkpoint: Checkpoint, name: str, cache: Cache | None) -> float:
    """How far the decoder is from a folder's golden logits, begun with this cache."""
    input_ids, logits = golden_of(name)
    config = checkpoint.config
    ids = input_ids[0].tolist()
    prompt = Prompt(ids=tuple(ids))
    if config.sop_token_id is not None:
        prompt = prefix_prompt(ids, config.sop_token_id, [{mask} for mask in config.mask_token_ids])
    config = config if cache is not None else replace(config, prefix_length=0)
    given = [torch.from_numpy(array) for array in prefill_feeds([prompt], config).named().values()]
    found = load_reference(checkpoint)(*given, cache).logits
    return difference(found.detach().numpy(), logits)


@pytest.mark.parametrize("name", FULL)
def test_logits(name: str) -> None:
    checkpoint = open_checkpoint(folder(name))
    assert checkpoint.notes == ()
    assert off_by(checkpoint, name, checkpoint.initial_cache) <= BOUND / 5
    assert np.abs(golden_of(name)[1]).max() > 2


def changed_keys(change: Callable[[Tensor], Tensor]) -> Callable[[Cache], Cache]:
    return lambda cache: tuple((change(key), value) for key, value in cache)


def not_turned(checkpoint: Checkpoint) -> Cache:
    """Keys as they are stored, which the publisher's own positions, from 0 behind the prefix, would want."""
    assert checkpoint.prefix is not None
    rows = checkpoint.prefix.sources["embedding.weight"].read().float()
    config = checkpoint.config
    tensors = rows.view(len(rows), -1, config.kv_heads, config.head_dim).permute(1, 2, 0, 3)[:, None]
    return tuple(zip(tensors[0::2], tensors[1::2], strict=True))


@pytest.mark.parametrize("name", FULL)
def test_no_other_cache_gives_them(name: str) -> None:
    checkpoint = open_checkpoint(folder(name))
    cache = checkpoint.initial_cache
    assert cache is not None
    swapped = tuple((value, key) for key, value in cache)
    backwards = changed_keys(lambda key: key.flip(1))(cache)
    for other in (None, swapped, backwards, cache[::-1]):
        assert off_by(checkpoint, name, other) > 100 * BOUND


@pytest.mark.parametrize("name", ["ptuning_full_chatglm2", "ptuning_full_chatglm"])
def test_keys_are_turned_or_dealt(name: str) -> None:
    """ChatGLM2's are turned by the prefix's length; ChatGLM-6B's stand in the order of its weights."""
    checkpoint = open_checkpoint(folder(name))
    assert off_by(checkpoint, name, not_turned(checkpoint)) > 100 * BOUND


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("stored_as", ["transformer.prefix_encoder.", "prefix_encoder.", ""])
def test_beside_its_base(name: str, stored_as: str, tmp_path: Path) -> None:
    base = bare(folder(name), tmp_path / "base")
    prefix = tmp_path / "prefix"
    shutil.copytree(folder(ALONE[name]), prefix)
    tensors = torch.load(prefix / "pytorch_model.bin", weights_only=True)
    renamed = {stored_as + key.split("prefix_encoder.")[1]: value for key, value in tensors.items()}
    torch.save(renamed, prefix / "pytorch_model.bin")
    checkpoint = open_checkpoint(base)
    assert checkpoint.initial_cache is None
    added = open_prefix(prefix, checkpoint.config)
    expected = open_checkpoint(folder(name))
    assert added.config == expected.config
    assert added.notes == ()
    together = replace(checkpoint, config=added.config, prefix=added.prefix)
    assert off_by(together, name, together.initial_cache) <= BOUND / 5


def test_with_projection_beside_its_base(tmp_path: Path) -> None:
    """Without a config.json the tensors say that there is one."""
    name = "ptuning_proj_chatglm2"
    checkpoint = open_checkpoint(bare(folder(name), tmp_path / "base"))
    tensors = torch.load(folder(name) / "pytorch_model.bin", weights_only=True)
    (tmp_path / "prefix").mkdir()
    torch.save({key: tensors[key] for key in tensors if "prefix_encoder" in key}, tmp_path / "prefix/pytorch_model.bin")
    added = open_prefix(tmp_path / "prefix", checkpoint.config)
    together = replace(checkpoint, config=added.config, prefix=added.prefix)
    assert off_by(together, name, together.initial_cache) <= BOUND / 5
    given = open_checkpoint(checkpoint.folder, adapters=[tmp_path / "prefix"])
    assert given.config == together.config
    assert given.identity.fingerprint() != checkpoint.identity.fingerprint()
    assert any("pytorch_model.bin" in name and name != "pytorch_model.bin" for name in given.identity.hashes())


def bare(source: Path, target: Path) -> Path:
    """The base without its prefix."""
    tensors = torch.load(source / "pytorch_model.bin", weights_only=True)
    return changed(source, target, {"pre_seq_len": None}, {k: v for k, v in tensors.items() if "prefix" not in k})


def changed(source: Path, target: Path, values: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> Path:
    shutil.copytree(source, target)
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | values))
    if tensors is not None:
        torch.save(tensors, target / "pytorch_model.bin")
    return target


def test_without_pre_seq_len_a_prefix_is_not_read(tmp_path: Path) -> None:
    """As the publisher's class, which makes no prefix encoder then."""
    checkpoint = open_checkpoint(changed(folder("ptuning_full_chatglm2"), tmp_path / "c", {"pre_seq_len": None}))
    checkpoint.audit()
    assert checkpoint.initial_cache is None
    assert checkpoint.config.max_positions == 512
    assert [note for note in checkpoint.notes if "pre_seq_len" in note]


def test_without_prefix_projection_its_layers_are_not_read(tmp_path: Path) -> None:
    name = "ptuning_proj_chatglm2"
    checkpoint = open_checkpoint(changed(folder(name), tmp_path / "c", {"prefix_projection": False}))
    assert [note for note in checkpoint.notes if "prefix_projection" in note]
    assert off_by(checkpoint, name, checkpoint.initial_cache) > 100 * BOUND


@pytest.mark.parametrize(
    ("values", "dropped", "told"),
    [
        ({}, "prefix_encoder", "pre_seq_len is 8.*--adapter.*pre_seq_len to null"),
        ({"pre_seq_len": 9}, "nothing", r"embedding.weight should be \[9, 128\], found \[8, 128\]"),
        ({"seq_length": -1}, "nothing", "the prefix .* has 8 tokens, and with it the context has 7"),
        ({}, "trans.2.bias", "missing trans.2.bias"),
        ({}, "encoder.trans.", "missing trans.0.weight"),
    ],
)
def test_what_does_not_fit_is_told(values: dict[str, Any], dropped: str, told: str, tmp_path: Path) -> None:
    source = folder("ptuning_proj_chatglm2")
    tensors = torch.load(source / "pytorch_model.bin", weights_only=True)
    kept = {name: tensor for name, tensor in tensors.items() if not ("prefix" in name and dropped in name)}
    checkpoint = open_checkpoint(changed(source, tmp_path / "c", values, kept))
    for read in (checkpoint.audit, lambda: checkpoint.initial_cache):
        with pytest.raises(CheckpointError, match=told):
            read()


def test_a_prefix_folder_is_told_from_a_model(tmp_path: Path) -> None:
    config = open_checkpoint(folder("ptuning_full_chatglm2")).config
    with pytest.raises(CheckpointError, match=r"and nothing else, found .*embedding.*CHECKPOINT"):
        open_prefix(folder("ptuning_full_chatglm2"), config)
    with pytest.raises(CheckpointError, match=r"P-Tuning prefix alone.*--adapter"):
        open_checkpoint(folder("ptuning_only_chatglm2")).audit()
    with pytest.raises(CheckpointError, match=r"should be \[8, 128\], found \[8, 256\]"):
        open_prefix(folder("ptuning_only_chatglm"), config)
    wrong = changed(folder("ptuning_only_chatglm2"), tmp_path / "c", {"pre_seq_len": 4})
    with pytest.raises(CheckpointError, match=r"pre_seq_len = 4, and .* has 8 rows"):
        open_prefix(wrong, config)


def test_a_prefix_that_is_no_numbers(tmp_path: Path) -> None:
    source = folder("ptuning_full_chatglm2")
    tensors = torch.load(source / "pytorch_model.bin", weights_only=True)
    tensors[EMBEDDING][0, 0] = float("nan")
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        _ = open_checkpoint(changed(source, tmp_path / "c", {}, tensors)).initial_cache
