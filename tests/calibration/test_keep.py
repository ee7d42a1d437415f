"""``--recipe keep``: the program holds a quantized source's integers, and computes what dequantizing them does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.calibration.recipes import KEEP
from glm_export.checkpoints.checkpoint import Checkpoint
from glm_export.checkpoints.quantized.official import RowwiseIntegers
from glm_export.errors import InputError
from glm_export.sessions.session import Session
from tests.helpers.golden_data import BOUND, difference
from tests.helpers.golden_folders import folder, golden_of, logits_of
from tests.helpers.quantized_layers import CONFIGS, LAYER, layer, written
from tests.helpers.tiny import random_tensors, tiny_values, write_checkpoint

Open = Callable[[Path], Checkpoint]
GATE_UP = "layers.0.mlp.gate_up.weight"
OFFICIAL = [
    ("int4_chatglm2", "onnx"), ("int4_chatglm", "onnx"), ("int8_chatglm", "onnx"), ("int8_chatglm", "portable"),
    ("int4_chatglm2", "tensorrt"), ("int4_chatglm2", "ort"), ("int8_chatglm", "ort"),
]  # fmt: skip
HELD = [
    "gptq4_row",
    "gptq8",
    "ct_int4_group",
    "ct_int4_channel",
    "ct_int8_packed",
    "ct_w8a8",
    "ct_int8_tensor",
    "bnb_int8",
]


def whole_prompt(session: Session, input_ids: np.ndarray) -> np.ndarray:
    """ChatGLM-6B makes masks and positions of the ids."""
    if session.config.prefix_mask:
        return session.prefill(session.feeds([session.prompt(row.tolist()) for row in input_ids]))
    return logits_of(session, input_ids)


@pytest.mark.parametrize(("name", "dialect"), OFFICIAL)
def test_official_integers(name: str, dialect: str, tmp_path: Path) -> None:
    """The publisher's logits, which are of the dequantized weights."""
    program = api.export(folder(name), tmp_path / "out", dialect=dialect, recipe=KEEP, logits="all")
    assert program.recipe == KEEP
    assert program.manifest["left_in_float"]["head.weight"] == "a float in the source"
    assert api.check(program, folder(name)).parity.required_tolerance <= 1e-4
    if dialect != "tensorrt":
        input_ids, logits = golden_of(name)
        with api.load_session(program) as session:
            assert difference(whole_prompt(session, input_ids), logits) <= BOUND


def test_in_half_precision_too(tmp_path: Path) -> None:
    program = api.export(folder("int4_chatglm2"), tmp_path / "out", dialect="ort", recipe=KEEP, dtype="float16")
    assert program.manifest["kept"] == {"bits": 4, "group": 128}
    assert api.check(program, folder("int4_chatglm2")).passed


def test_control_of_other_integers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``check`` holds the program to the source, not to its own integers."""
    plain = RowwiseIntegers.integers

    def changed(self: RowwiseIntegers) -> tuple[Tensor, Tensor]:
        integers, scales = plain(self)
        return integers.flip(1), scales

    monkeypatch.setattr(RowwiseIntegers, "integers", changed)
    program = api.export(folder("int4_chatglm2"), tmp_path / "out", recipe=KEEP)
    assert not api.check(program, folder("int4_chatglm2")).passed


def stored_weight(program: OnnxProgram) -> Tensor:
    """``DequantizeLinear`` of one weight by hand, ``[N, K]``; the integers lie ``[K, N]``."""
    initializers = ir.load(program.model_path).graph.initializers
    packed, scales = (
        torch.from_numpy(initializers[f"{GATE_UP}.{part}"].const_value.numpy().astype(np.float32))
        for part in ("packed", "scales")
    )
    spread = scales if scales.dim() == 1 else scales.repeat_interleave(-(-len(packed) // len(scales)), 0)[: len(packed)]
    return (packed * spread).t()


@pytest.mark.parametrize("case", HELD)
def test_what_a_format_can_hold(case: str, tmp_path: Path, opened: Open) -> None:
    tensors, _ = layer(case)
    checkpoint = opened(written(tmp_path / "c", tensors, CONFIGS[case]))
    program = api.export(checkpoint, tmp_path / "out", recipe=KEEP)
    expected = checkpoint.tensor(f"{LAYER}.weight")
    # bitsandbytes multiplies by its maximum and by 1 / 127, one after the other.
    torch.testing.assert_close(stored_weight(program), expected, rtol=2e-7 if case == "bnb_int8" else 0, atol=0)
    assert api.check(program, checkpoint).passed
    small = (program.folder / "model.onnx.data").stat().st_size
    assert small < sum(tensor.nbytes for tensor in random_tensors(tiny_values("glm4")).values())


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("gptq4_act_order", r"act-order"), ("gptq4", "zero points of its own"), ("awq4", "zero points of its own"),
        ("gptq2", "has 2 bits"), ("ct_int4_zero_points", "zero points of its own"), ("bnb_nf4", "is nf4"),
        ("ct_fp8_channel", "is float8_e4m3fn"), ("ct_fp8_block", "is float8_e4m3fn"),
    ],
)  # fmt: skip
def test_what_none_can(case: str, message: str, tmp_path: Path, opened: Open) -> None:
    checkpoint = opened(written(tmp_path / "c", layer(case)[0], CONFIGS[case]))
    with pytest.raises(InputError, match=f"{LAYER}.weight.*{message}.*without --recipe every weight is dequantized"):
        api.export(checkpoint, tmp_path / "out", recipe=KEEP)


def test_a_source_of_floats_has_nothing_to_keep(tmp_path: Path, opened: Open) -> None:
    values = tiny_values("glm4")
    checkpoint = opened(write_checkpoint(tmp_path / "c", values, random_tensors(values)))
    with pytest.raises(InputError, match="no quantized weights to keep"):
        api.export(checkpoint, tmp_path / "out", recipe=KEEP)


def test_one_kind_of_integers(tmp_path: Path, opened: Open) -> None:
    path = written(tmp_path / "c", layer("ct_int4_group")[0], CONFIGS["ct_int4_group"])
    tensors = load_file(path / "model.safetensors")
    other = LAYER.replace("layers.0", "layers.1")
    del tensors[f"{other}.weight"]
    tensors |= {f"{other}.{name}": tensor for name, tensor in layer("ct_w8a8")[0].items()}
    values = tiny_values("glm4", quantization_config=CONFIGS["ct_int4_group"])
    mixed = opened(write_checkpoint(tmp_path / "m", values, tensors))
    mixed.audit()
    with pytest.raises(InputError, match=r"one kind of integers, and layers.0.* 16 neighbours, layers.1.* each row"):
        api.export(mixed, tmp_path / "out", recipe=KEEP)


def test_four_bits_need_a_dialect_that_has_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="recipe keep needs --dialect onnx or ort or tensorrt; found dialect portable"):
        api.export(folder("int4_chatglm2"), tmp_path / "out", recipe=KEEP, dialect="portable")
