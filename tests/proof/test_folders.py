"""Folders as people have them: logits equal those of transformers, peft or the publisher's code, in both runtimes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from glm_export import api
from glm_export.checkpoints.quantized.official import RowwiseIntegers
from glm_export.errors import InputError
from glm_export.inputs.prompts import prefill_feeds
from glm_export.sessions.session import Session
from glm_export.sessions.torch import load_reference
from tests.helpers.golden_data import BOUND, difference
from tests.helpers.golden_folders import folder, golden_of, logits_of
from tests.helpers.tiny import write_checkpoint

CAUSAL = ("tf5_glm4", "tf5_glm4_yarn", "moe_fused_tf5", "native_tied_cfg_lmhead_differs")
ADAPTERS = ("lora_plain", "lora_rs", "lora_dora", "lora_mts")
ILL_CONDITIONED = "lora_rs"
"""One of its tokens answers half a unit in the last place of every weight with 1e-5, and float32 sums with 1.3e-4."""
VISION = ("vl_glm4v", "vl_glm4v_moe", "vl_glm_ocr")
OFFICIALLY_QUANTIZED = ("int4_chatglm2", "int4_chatglm", "int8_chatglm")


def in_each_runtime(name: str, tmp_path: Path) -> list[Session]:
    """The folder in PyTorch and, exported, in ONNX Runtime."""
    program = api.export(folder(name), tmp_path / name)
    return [api.load_session(folder(name)), api.load_session(program)]


@pytest.mark.parametrize("name", [*CAUSAL, *VISION])
def test_logits(name: str, tmp_path: Path) -> None:
    input_ids, logits = golden_of(name)
    for session in in_each_runtime(name, tmp_path):
        with session:
            found = logits_of(session, input_ids)
            assert difference(found, logits) <= BOUND
            assert np.array_equal(found.argmax(-1), logits.argmax(-1))
    assert np.abs(logits).max() > 2  # the bound is meant for logits of this scale


@pytest.mark.parametrize("name", ADAPTERS)
def test_logits_with_an_adapter(name: str, tmp_path: Path) -> None:
    """As PEFT computes them; without the adapter, or with a little less of it, they are others."""
    input_ids, logits = golden_of(name)
    opened = api.open_checkpoint(folder("lora_base"), adapters=[folder(name)])
    program = api.export(opened, tmp_path / name)
    assert program.manifest["adapters"] == [{"name": name, "base": "../lora_base", "weight": 1.0}]
    for session in (api.load_session(opened), api.load_session(program)):
        with session:
            found = logits_of(session, input_ids)
            assert difference(found, logits) <= (2 * BOUND if name == ILL_CONDITIONED else BOUND)
            assert np.array_equal(found.argmax(-1), logits.argmax(-1))
    # The merged weights themselves are as exact as PEFT's float32.
    exact = load_reference(opened).double()(torch.from_numpy(input_ids)).logits
    assert difference(exact.numpy(), logits) <= BOUND / 5
    with api.load_session(folder("lora_base")) as base:
        assert difference(logits_of(base, input_ids), logits) > 100 * BOUND
    assert api.check(program, opened).passed
    with pytest.raises(InputError, match=f"exported with adapters {name}"):
        api.check(program, folder("lora_base"))


def official_logits(session: Session, input_ids: np.ndarray) -> np.ndarray:
    """The whole prompt at once; ChatGLM-6B makes masks and positions of the ids."""
    if session.config.prefix_mask:
        return session.prefill(prefill_feeds([session.prompt(row.tolist()) for row in input_ids], session.config))
    return logits_of(session, input_ids)


@pytest.mark.parametrize("name", OFFICIALLY_QUANTIZED)
def test_logits_of_official_integers(name: str, tmp_path: Path) -> None:
    input_ids, logits = golden_of(name)
    for session in in_each_runtime(name, tmp_path):
        with session:
            found = official_logits(session, input_ids)
            assert difference(found, logits) <= BOUND
            assert np.array_equal(found.argmax(-1), logits.argmax(-1))
    assert np.abs(logits).max() > 2


def test_control_of_official_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of two values in the low bits, as every other scheme has it, is another model."""
    plain = RowwiseIntegers.integer_rows

    def exchanged(self: RowwiseIntegers, start: int, stop: int) -> torch.Tensor:
        return plain(self, start, stop).unflatten(1, (-1, 2)).flip(2).flatten(1)

    input_ids, logits = golden_of("int4_chatglm2")
    monkeypatch.setattr(RowwiseIntegers, "integer_rows", exchanged)
    with api.load_session(folder("int4_chatglm2")) as session:
        assert difference(logits_of(session, input_ids), logits) > 100 * BOUND


def test_a_prefix_beside_its_base(tmp_path: Path) -> None:
    """As in the folder that holds both; its weights are the base's, without the prefix."""
    whole, alone = folder("ptuning_full_chatglm2"), folder("ptuning_only_chatglm2")
    tensors = torch.load(whole / "pytorch_model.bin", weights_only=True)
    values = json.loads((whole / "config.json").read_text()) | {"pre_seq_len": None}
    base = write_checkpoint(
        tmp_path / "base", values, {name: t for name, t in tensors.items() if "prefix_encoder" not in name}
    )
    (one, expected) = (api.open_checkpoint(base, adapters=[alone]), api.open_checkpoint(whole))
    assert one.config == expected.config
    assert one.initial_cache is not None
    assert expected.initial_cache is not None
    for found, other in zip(one.initial_cache, expected.initial_cache, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, other, strict=True))
    program = api.export(one, tmp_path / "program")
    assert [record["name"] for record in program.manifest["adapters"]] == ["ptuning_only_chatglm2"]
    assert api.check(program, one).passed
    with pytest.raises(InputError, match="exported with adapters ptuning_only_chatglm2"):
        api.check(program, base)
    assert one.identity.fingerprint() != api.open_checkpoint(base).identity.fingerprint()
    with pytest.raises(InputError, match="give one"):
        api.open_checkpoint(base, adapters=[alone, folder("ptuning_only_chatglm")])
    with pytest.raises(InputError, match="no weight applies"):
        api.open_checkpoint(base, adapters=[(alone, 0.5)])
