"""Quantized sources: layers packed and unpacked by the schemes' own libraries, and folders that say too little."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from glm_export import families
from glm_export.checkpoints import sources
from glm_export.checkpoints.checkpoint import Checkpoint
from glm_export.checkpoints.quantized import awq, gptq
from glm_export.errors import CheckpointError
from tests.helpers.golden_folders import folder
from tests.helpers.quantized_layers import CONFIGS, LAYER, layer, written
from tests.helpers.tiny import random_tensors, tiny_values, write_checkpoint

Open = Callable[[Path], Checkpoint]
ACTIVATIONS = {"ct_fp8_channel", "ct_w8a8", "bnb_int8"}


@pytest.mark.parametrize("pieces", [1 << 22, 5 * 64], ids=["whole", "five rows at a time"])
@pytest.mark.parametrize("case", CONFIGS)
def test_as_its_library(tmp_path: Path, opened: Open, monkeypatch: pytest.MonkeyPatch, case: str, pieces: int) -> None:
    monkeypatch.setattr(sources, "PIECE_ELEMENTS", pieces)
    tensors, expected = layer(case)
    checkpoint = opened(written(tmp_path / "c", tensors, CONFIGS[case]))
    checkpoint.audit()
    found = checkpoint.tensor(f"{LAYER}.weight", expected.dtype)
    assert torch.equal(found, expected)
    assert expected.float().abs().max() > 0.05
    assert any("1 weights are" in note for note in checkpoint.notes)
    assert any("rounds activations" in note for note in checkpoint.notes) == (case in ACTIVATIONS)


def test_act_order_of_compressed_tensors(tmp_path: Path, opened: Open) -> None:
    """The group of each channel, by hand: the library leaves it to its kernels."""
    tensors, expected = layer("ct_int4_group")
    ordered = torch.arange(64) // 16
    dealt = ordered[torch.randperm(64, generator=torch.Generator().manual_seed(1))]
    scales = tensors["weight_scale"].float()
    integers = (expected.float() / scales[:, ordered]).round()
    config = CONFIGS["ct_int4_group"]
    path = written(tmp_path / "c", tensors | {"weight_g_idx": dealt.int()}, config)
    found = opened(path).tensor(f"{LAYER}.weight")
    assert torch.equal(found, integers * scales[:, dealt])
    assert not torch.equal(found, integers * scales[:, ordered])
    unordered = written(tmp_path / "u", tensors | {"weight_g_idx": torch.full((64,), -1, dtype=torch.int32)}, config)
    assert torch.equal(opened(unordered).tensor(f"{LAYER}.weight"), integers * scales[:, ordered])


@pytest.mark.parametrize("block", [(128, 128), (32, 48), (224, 64)])
def test_float8_in_blocks(tmp_path: Path, opened: Open, block: tuple[int, int]) -> None:
    """Blocks at the edges are cut short: a Kronecker product with ones, cut to size."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(224, 64, generator=generator).to(torch.float8_e4m3fn)
    scales = torch.rand(-(-224 // block[0]), -(-64 // block[1]), generator=generator) + 0.5
    spread = torch.kron(scales, torch.ones(block))[:224, :64]
    config = {"quant_method": "fp8", "weight_block_size": list(block), "activation_scheme": "dynamic"}
    tensors = {"weight": values, "weight_scale_inv": scales}
    checkpoint = opened(written(tmp_path / "c", tensors, config))
    assert torch.equal(checkpoint.tensor(f"{LAYER}.weight"), values.float() * spread)
    assert any("rounds activations" in note for note in checkpoint.notes)
    if block == (224, 64):
        tensors["weight_scale_inv"] = scales.reshape(())
        assert torch.equal(
            opened(written(tmp_path / "s", tensors, config)).tensor(f"{LAYER}.weight"), values.float() * spread
        )


def test_gptq_of_the_second_format(tmp_path: Path, opened: Open) -> None:
    """``gptq_v2`` stores zero points as they are: one more in every place (GPTQModel's conversion)."""
    tensors, expected = layer("gptq4_act_order")
    tensors["qzeros"] = tensors["qzeros"] + 0x11111111
    config = CONFIGS["gptq4_act_order"] | {"checkpoint_format": "gptq_v2"}
    assert torch.equal(opened(written(tmp_path / "c", tensors, config)).tensor(f"{LAYER}.weight"), expected)


def test_an_older_folder_has_a_config_of_its_own(tmp_path: Path, opened: Open) -> None:
    for case, name in (("gptq4_act_order", "quantize_config.json"), ("awq4", "quant_config.json")):
        tensors, expected = layer(case)
        path = written(tmp_path / case, tensors, None)
        (path / name).write_text(json.dumps({key: v for key, v in CONFIGS[case].items() if key != "quant_method"}))
        assert torch.equal(opened(path).tensor(f"{LAYER}.weight"), expected)


def test_what_the_tools_leave_beside_weights(tmp_path: Path, opened: Open) -> None:
    """A bias of zeros where the model has none; scales of activations, keys and values."""
    tensors, expected = layer("gptq4")
    beside = {"bias": torch.zeros(224, dtype=torch.float16), "input_scale": torch.ones(1)}
    checkpoint = opened(written(tmp_path / "c", tensors | beside, CONFIGS["gptq4"]))
    checkpoint.audit()
    assert torch.equal(checkpoint.tensor(f"{LAYER}.weight"), expected)
    real = opened(written(tmp_path / "r", tensors | {"bias": torch.ones(224)}, CONFIGS["gptq4"]))
    with pytest.raises(CheckpointError, match=r"unexpected model.layers.0.mlp.gate_up_proj.bias"):
        real.audit()


def test_every_expert_may_be_quantized(tmp_path: Path, opened: Open) -> None:
    values = tiny_values("glm4_moe", quantization_config={"quant_method": "compressed-tensors"})
    held = random_tensors(values)
    expected = {name: tensor for name, tensor in held.items() if ".experts." in name}
    for name, weight in expected.items():
        scales = weight.abs().amax(1, keepdim=True) / 127
        held[name] = (weight / scales).round().to(torch.int8)
        held[f"{name}_scale"] = scales
    checkpoint = opened(write_checkpoint(tmp_path / "c", values, held))
    checkpoint.audit()
    assert len(expected) > 10
    for name in expected:
        assert torch.equal(checkpoint.tensor(name), held[name] * held[f"{name}_scale"])
    assert all(torch.isfinite(parameter).all() for _, parameter in checkpoint.parameters())


def test_a_stale_config_over_floats_is_ignored(tmp_path: Path, opened: Open) -> None:
    """As a merged adapter over a quantized base leaves it."""
    values = tiny_values("glm4", quantization_config=CONFIGS["bnb_nf4"])
    tensors = random_tensors(values)
    checkpoint = opened(write_checkpoint(tmp_path / "c", values, tensors))
    checkpoint.audit()
    assert torch.equal(checkpoint.tensor(f"{LAYER}.weight"), tensors[f"{LAYER}.weight"])
    assert checkpoint.notes == (
        "quantization_config of config.json (bitsandbytes) ignored: every weight in the files is float",
    )


def test_names_without_the_decoders_prefix(tmp_path: Path, opened: Open) -> None:
    tensors, expected = layer("gptq4")
    path = written(tmp_path / "c", tensors, CONFIGS["gptq4"])
    bare = {name.removeprefix("model."): tensor for name, tensor in load_file(path / "model.safetensors").items()}
    values = json.loads((path / "config.json").read_text())
    checkpoint = opened(write_checkpoint(tmp_path / "b", values, bare))
    checkpoint.audit()
    assert torch.equal(checkpoint.tensor(f"{LAYER}.weight"), expected)


def _without(case: str, *names: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in layer(case)[0].items() if name not in names}


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        (layer("gptq4")[0], None, "nothing says what its zero points mean .* found neither"),
        (layer("gptq4")[0], CONFIGS["awq4"], "found method 'awq' in quantization_config"),
        (layer("gptq4")[0], CONFIGS["gptq4"] | {"checkpoint_format": "marlin"}, "GPTQ's format 'marlin'"),
        (_without("gptq4", "qzeros"), CONFIGS["gptq4"], r"lacks model.layers.0.mlp.gate_up_proj.qzeros"),
        (layer("gptq4")[0] | {"g_idx": torch.full((64,), 9)}, CONFIGS["gptq4"], "groups 9 to 9 in g_idx, and 4 scales"),
        (layer("gptq4")[0] | {"qweight": torch.zeros(6, 224, dtype=torch.int32)}, CONFIGS["gptq4"], "has 3 bits"),
        (layer("awq4")[0], CONFIGS["awq4"] | {"version": "gemv"}, "AWQ's 'gemv'"),
        (_without("bnb_nf4", "weight.quant_state.bitsandbytes__nf4"), CONFIGS["bnb_nf4"], "quant_state"),
        (_without("bnb_nf4", "weight.absmax"), CONFIGS["bnb_nf4"], "lacks .*weight.absmax"),
        (layer("bnb_int8")[0] | {"weight_format": torch.tensor(2)}, CONFIGS["bnb_int8"], "tile order"),
        (layer("ct_int4_group")[0] | {"weight_shape": torch.tensor([1, 2])}, {}, r"weight_shape \[1, 2\]"),
        (layer("ct_fp8_block")[0], {}, r"should have weight_scale of one value.* found \[2, 2\]"),
        (layer("ct_fp8_tensor")[0], {"quant_method": "compressed-tensors", "transform_config": {"a": 1}}, "transform"),
        (
            {"weight": torch.zeros(224, 64, dtype=torch.float8_e4m3fn), "weight_scale_inv": torch.ones(2, 1)},
            None,
            "weight_block_size",
        ),
        ({"W_q": torch.zeros(3, dtype=torch.uint8)}, {"quant_method": "hqq"}, r"\(hqq\) says, in tensors of no scheme"),
    ],
)
def test_refusals(
    tmp_path: Path, opened: Open, tensors: dict[str, Tensor], config: dict[str, Any] | None, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        opened(written(tmp_path / "c", tensors, config))
    assert "\n" not in str(error.value)


def test_a_folder_that_lost_its_scales(opened: Open) -> None:
    with pytest.raises(CheckpointError, match=r"lacks weight.quant_state.bitsandbytes__nf4, which says its shape"):
        opened(folder("bnb4_native"))


def test_official_bits_must_be_those_of_the_tensors(tmp_path: Path, opened: Open) -> None:
    source = folder("int4_chatglm2")
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    values = json.loads((source / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"quantization_bit": 8}))
    with pytest.raises(CheckpointError, match=r"in 4 bits, and .* has quantization_bit 8"):
        opened(tmp_path)


# -- controls: each is another model ---------------------------------------------------------------------


def _error(path: Path, opened: Open, expected: Tensor) -> float:
    return float((opened(path).tensor(f"{LAYER}.weight") - expected).abs().max())


def test_control_of_the_zero_convention(tmp_path: Path, opened: Open) -> None:
    tensors, expected = layer("gptq4")
    config = CONFIGS["gptq4"] | {"checkpoint_format": "gptq_v2"}
    assert _error(written(tmp_path / "c", tensors, config), opened, expected) > 0.005


def test_control_of_the_order_of_channels(tmp_path: Path, opened: Open) -> None:
    tensors, expected = layer("gptq4_act_order")
    del tensors["g_idx"]
    assert _error(written(tmp_path / "c", tensors, CONFIGS["gptq4_act_order"]), opened, expected) > 0.005


def test_control_of_the_order_within_words(tmp_path: Path, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, expected = layer("awq4")
    monkeypatch.setattr(awq, "PLACE_OF", list(range(8)))
    assert _error(written(tmp_path / "a", tensors, CONFIGS["awq4"]), opened, expected) > 0.005
    tensors, expected = layer("gptq4")
    monkeypatch.setattr(gptq, "unpacked", lambda words, bits: gptq_unpacked(words, bits).flip(-1))
    assert _error(written(tmp_path / "g", tensors, CONFIGS["gptq4"]), opened, expected) > 0.005


gptq_unpacked = gptq.unpacked


def test_every_family_may_come_quantized() -> None:
    """No family's config stops at the keys that say so."""
    for name in families.names():
        families.read_config(tiny_values(name, quantization_config={"quant_method": "gptq"}))
