"""LoRA folders as PEFT writes them: merged numbers against formulas in float64, and what cannot be merged refused.

Logits against PEFT itself: ``tests/proof/test_folders.py``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from glm_export import api
from glm_export.checkpoints.adapters.open import parse_adapter
from glm_export.checkpoints.checkpoint import Checkpoint, open_checkpoint
from glm_export.errors import CheckpointError, InputError
from tests.helpers.golden_folders import folder
from tests.helpers.tiny import random_tensors, tiny_values, write_checkpoint

QKV = "transformer.encoder.layers.0.self_attention.query_key_value"
DENSE = "transformer.encoder.layers.1.mlp.dense_4h_to_h"
Write = Callable[..., Path]


def low_rank(rows: int, columns: int, rank: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """``A [r, K]`` and ``B [N, r]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rank, columns, generator=generator), torch.randn(rows, rank, generator=generator)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A ChatGLM2 of two layers, float16."""
    values = tiny_values("chatglm2")
    return write_checkpoint(tmp_path / "base", values, random_tensors(values, dtype=torch.float16))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes an adapter of two modules."""

    def adapter(name: str = "lora", extra: dict[str, Tensor] | None = None, **settings: Any) -> Path:
        path = tmp_path / name
        path.mkdir()
        config = {"peft_type": "LORA", "base_model_name_or_path": "THUDM/chatglm2-6b", "r": 3, "lora_alpha": 6}
        (path / "adapter_config.json").write_text(json.dumps(config | settings))
        tensors: dict[str, Tensor] = {}
        for module, (a, b) in MATRICES.items():
            tensors |= {
                f"base_model.model.{module}.lora_A.weight": a.clone(),
                f"base_model.model.{module}.lora_B.weight": b.clone(),
            }
        save_file(tensors | (extra or {}), path / "adapter_model.safetensors")
        return path

    return adapter


MATRICES = {QKV: low_rank(128, 64), DENSE: low_rank(64, 112, seed=1)}


def weight(base: Path, module: str, *adapters: Any) -> Tensor:
    """The weight as it is read, float64."""
    return open_checkpoint(base, adapters=adapters).tensor(f"{module}.weight").double()


def change(module: str) -> Tensor:
    a, b = MATRICES[module]
    return b.double() @ a.double()


def close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() < 2e-5)


def test_plain(base: Path, write: Write) -> None:
    lora = write()
    for module in MATRICES:
        assert close(weight(base, module, lora), weight(base, module) + 2 * change(module))
    opened = open_checkpoint(base, adapters=[lora])
    opened.audit()
    untouched = "transformer.encoder.layers.0.mlp.dense_4h_to_h.weight"
    assert opened.tensor(untouched).dtype is torch.float16  # still mapped
    assert "merged into 2 weights" in " ".join(opened.notes)


def test_rank_stabilised_and_patterns(base: Path, write: Write) -> None:
    """A pattern is a regular expression that the end of the name must match: PEFT's ``get_pattern_key``."""
    assert close(weight(base, QKV, write("rs", use_rslora=True)), weight(base, QKV) + 6 / math.sqrt(3) * change(QKV))
    patterned = write(
        "pattern", r=8, rank_pattern={r"(encoder\.)?layers\.\d+\..*": 3}, alpha_pattern={"dense_4h_to_h": 30, "key": 90}
    )
    assert close(weight(base, DENSE, patterned), weight(base, DENSE) + 10 * change(DENSE))
    assert close(weight(base, QKV, patterned), weight(base, QKV) + 2 * change(QKV))  # "key" is no whole end
    with pytest.raises(CheckpointError, match="rank 8, its matrices have 3"):
        weight(base, QKV, write("wrong", r=8))


def test_dora_rows_have_its_magnitudes(base: Path, write: Write) -> None:
    magnitudes = {module: torch.rand(len(b)) + 0.5 for module, (_, b) in MATRICES.items()}
    extra = {f"base_model.model.{name}.lora_magnitude_vector": m for name, m in magnitudes.items()}
    dora = write("dora", extra, use_dora=True)
    for module, magnitude in magnitudes.items():
        changed = weight(base, module) + 2 * change(module)
        expected = magnitude.double()[:, None] * changed / changed.norm(dim=1, keepdim=True)
        assert close(weight(base, module, dora), expected)
    with pytest.raises(CheckpointError, match="leave its weight out"):
        open_checkpoint(base, adapters=[(dora, 0.5)])
    with pytest.raises(CheckpointError, match="give one of them"):
        open_checkpoint(base, adapters=[dora, write("other")])
    with pytest.raises(CheckpointError, match="no lora_magnitude_vector"):
        open_checkpoint(base, adapters=[write("without", use_dora=True)])


def test_several_add_up_with_weights(base: Path, write: Write) -> None:
    one, other = write("one"), write("other", lora_alpha=3)
    expected = weight(base, QKV) + (2 * 0.5 + 1 * -0.25) * change(QKV)
    assert close(weight(base, QKV, (one, 0.5), f"{other}=-0.25"), expected)
    assert close(weight(base, QKV, f"{other}=-0.25", (one, 0.5)), expected)


def test_whole_tensors_biases_and_embeddings(base: Path, write: Write) -> None:
    embedding, bias = "transformer.embedding.word_embeddings", f"{QKV}.bias"
    a, b = low_rank(64, 320, seed=2)
    head = torch.randn(320, 64)
    extra = {
        "base_model.model.transformer.output_layer.weight": head,
        f"base_model.model.{QKV}.base_layer.bias": torch.ones(128),
        f"base_model.model.{embedding}.lora_embedding_A": a.contiguous(),
        f"base_model.model.{embedding}.lora_embedding_B": b.contiguous(),
    }
    opened = open_checkpoint(base, adapters=[write("whole", extra)])
    opened.audit()
    assert torch.equal(opened.tensor("transformer.output_layer.weight"), head)
    assert torch.equal(opened.tensor(bias), torch.ones(128))
    expected = weight(base, embedding) + 2 * (b.double() @ a.double()).t()
    assert close(opened.tensor(f"{embedding}.weight").double(), expected)
    both = [f"base_model.model.{QKV}.lora_B.bias"]
    trained = open_checkpoint(base, adapters=[write("biased", {both[0]: torch.ones(128)}, lora_bias=True)])
    assert close(trained.tensor(bias).double(), open_checkpoint(base).tensor(bias).double() + 2)
    with pytest.raises(CheckpointError, match=r"weight of 0\.5 cannot be applied"):
        open_checkpoint(base, adapters=[(write("again", extra), 0.5)])


def test_a_tied_head_stays_the_bases(tmp_path: Path) -> None:
    """PEFT changes what the embedding gives, and not the head that shares its weight."""
    values = tiny_values("glm")
    tensors = random_tensors(values)
    path = write_checkpoint(tmp_path / "tied", values, tensors)
    lora = tmp_path / "lora"
    lora.mkdir()
    (lora / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    a, b = low_rank(64, 320, rank=2)
    name = "base_model.model.model.embed_tokens.lora_embedding_"
    save_file({f"{name}A": a, f"{name}B": b}, lora / "adapter_model.safetensors")
    opened = open_checkpoint(path, adapters=[lora])
    opened.audit()
    parameters = dict(opened.parameters())
    assert not opened.config.tied_head
    assert torch.equal(parameters["head.weight"], tensors["model.embed_tokens.weight"])
    assert not torch.allclose(parameters["embedding.weight"], tensors["model.embed_tokens.weight"])


def test_names_of_other_writers(base: Path, write: Write) -> None:
    """The adapter's name in the keys, wrappers around them, a ``.bin``."""
    lora = write()
    plain = weight(base, QKV, lora)
    tensors = load_file(lora / "adapter_model.safetensors")
    renamed = {f"module.{name.replace('.weight', '.default.weight')}": tensor for name, tensor in tensors.items()}
    (lora / "adapter_model.safetensors").unlink()
    torch.save({name.removeprefix("module."): tensor for name, tensor in renamed.items()}, lora / "adapter_model.bin")
    assert torch.equal(weight(base, QKV, lora), plain)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "of type IA3"),
        ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
        ({"alora_invocation_tokens": [1]}, "behind certain tokens"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "stacked parameters"),
        ({"trainable_token_indices": [1]}, "single rows"),
        ({"lora_twist": 2}, "lora_twist"),
        ({"r": 0}, "rank r"),
        ({"rank_pattern": {"(": 3}}, "no regular expression"),
    ],
)
def test_what_cannot_be_merged_is_refused(base: Path, write: Write, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(base, adapters=[write("refused", **settings)])


def test_of_another_model(base: Path, write: Write, tmp_path: Path) -> None:
    values = tiny_values("chatglm2", ffn_hidden_size=96)
    other = write_checkpoint(tmp_path / "other", values)
    with pytest.raises(CheckpointError, match="another model"):
        open_checkpoint(other, adapters=[write()])
    with pytest.raises(CheckpointError, match="another model"):
        open_checkpoint(folder("lora_base"), adapters=[write("again")])
    with pytest.raises(CheckpointError, match="a whole model"):
        open_checkpoint(base, adapters=[base])
    with pytest.raises(InputError, match=r"holds no adapter_config\.json"):
        open_checkpoint(base, adapters=[tmp_path])


def test_how_an_adapter_is_given(tmp_path: Path) -> None:
    (tmp_path / "a=1").mkdir()
    assert parse_adapter(f"{tmp_path / 'a=1'}") == (tmp_path / "a=1", 1.0)
    assert parse_adapter("lora=0.5") == (Path("lora"), 0.5)
    assert parse_adapter(("lora", 2)) == (Path("lora"), 2.0)
    for text in ("lora=half", "lora=nan"):
        with pytest.raises(InputError, match="number"):
            parse_adapter(text)


def test_an_adapter_alone_names_its_base(write: Write) -> None:
    with pytest.raises(InputError, match=r"\.\./lora_base.*--adapter"):
        api.open_checkpoint(folder("lora_plain"))
    with pytest.raises(InputError, match="hf download THUDM/chatglm2-6b"):
        api.open_checkpoint(write())


def identity(checkpoint: Checkpoint) -> tuple[str, set[str]]:
    return checkpoint.identity.fingerprint(), set(checkpoint.hashes())


def test_identity_counts_adapters_and_weights(base: Path, write: Write) -> None:
    lora = write()
    opened = [open_checkpoint(base, adapters=given) for given in ((), (lora,), ((lora, 0.5),))]
    assert len({identity(checkpoint)[0] for checkpoint in opened}) == 3
    assert identity(opened[1])[1] - identity(opened[0])[1] == {
        "lora/adapter_config.json",
        "lora/adapter_model.safetensors",
    }


def test_large_merged_weights_lie_in_a_file(base: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export holds none of them in anonymous memory; where the disk has no room they are made in memory."""
    lora = write()
    expected = open_checkpoint(base, adapters=[lora]).tensor(f"{QKV}.weight", torch.float16)
    monkeypatch.setattr("glm_export.checkpoints.sources.SPOOLED_BYTES", 1)
    opened = open_checkpoint(base, adapters=[lora])
    maps = Path("/proc/self/maps")
    spooled = opened.tensor(f"{QKV}.weight", torch.float16, spooled=True)
    assert torch.equal(spooled, expected)
    if maps.exists():
        assert "glm-export-weight-" in maps.read_text()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    del spooled
    monkeypatch.setattr("os.posix_fallocate", full)
    assert torch.equal(opened.tensor(f"{QKV}.weight", torch.float16, spooled=True), expected)
    if maps.exists():
        assert "glm-export-weight-" not in maps.read_text()
