"""Against transformers' own classes, with sizes and seeds the golden files do not have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    Glm4Config,
    Glm4ForCausalLM,
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    GlmConfig,
    GlmForCausalLM,
    PreTrainedModel,
)

from glm_export import api
from glm_export.generation.generate import generate_ids
from glm_export.generation.sampling import Sampling
from glm_export.generation.stopping import Stopping
from glm_export.inputs.prompts import Prompt, prefill_feeds
from tests.helpers.golden_data import difference

COMMON = {"vocab_size": 130, "max_position_embeddings": 96, "pad_token_id": 0, "eos_token_id": [1]}
CASES = {
    "glm: one group, odd sizes": (
        GlmConfig, GlmForCausalLM,
        {"hidden_size": 60, "num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 12, "intermediate_size": 77,
         "num_hidden_layers": 3, "partial_rotary_factor": 0.5, "attention_bias": True},
    ),
    "glm-edge: tied head, whole heads rotated, head size apart from hidden size": (
        GlmConfig, GlmForCausalLM,
        {"hidden_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 20, "intermediate_size": 96,
         "num_hidden_layers": 2, "partial_rotary_factor": 1.0, "attention_bias": False, "tie_word_embeddings": True},
    ),
    "glm4: heads not shared": (
        Glm4Config, Glm4ForCausalLM,
        {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16, "intermediate_size": 80,
         "num_hidden_layers": 2, "partial_rotary_factor": 0.25, "attention_bias": True, "rope_theta": 777.0},
    ),
    "glm4: no biases, large base": (
        Glm4Config, Glm4ForCausalLM,
        {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 16, "intermediate_size": 40,
         "num_hidden_layers": 1, "partial_rotary_factor": 0.5, "attention_bias": False, "rope_theta": 5e6},
    ),
    "glm4_moe: norms of q and k, two dense layers, three experts of seven, two shared": (
        Glm4MoeConfig, Glm4MoeForCausalLM,
        {"hidden_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 72,
         "moe_intermediate_size": 20, "num_hidden_layers": 4, "first_k_dense_replace": 2, "n_routed_experts": 7,
         "num_experts_per_tok": 3, "n_shared_experts": 2, "routed_scaling_factor": 2.5, "norm_topk_prob": True,
         "use_qk_norm": True, "attention_bias": True, "partial_rotary_factor": 0.5, "n_group": 1, "topk_group": 1},
    ),
    "glm4_moe: four experts from two of three groups, weights as they are": (
        Glm4MoeConfig, Glm4MoeForCausalLM,
        {"hidden_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 72,
         "moe_intermediate_size": 24, "num_hidden_layers": 3, "first_k_dense_replace": 1, "n_routed_experts": 12,
         "num_experts_per_tok": 4, "n_shared_experts": 1, "routed_scaling_factor": 0.7, "norm_topk_prob": False,
         "use_qk_norm": False, "attention_bias": False, "partial_rotary_factor": 0.5, "n_group": 3, "topk_group": 2},
    ),
}  # fmt: skip


@pytest.fixture(params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[PreTrainedModel, Path]:
    """A random model of transformers and the folder it saved itself to."""
    config_class, model_class, sizes = CASES[request.param]
    torch.manual_seed(len(request.param))
    model = model_class(config_class(**COMMON, **sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (1.0 if parameter.dim() == 1 else 0.0))
    model.generation_config.eos_token_id = None
    model.save_pretrained(tmp_path / "saved")
    return model, tmp_path / "saved"


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_logits_loss_and_greedy_ids(pair: tuple[PreTrainedModel, Path], runtime: str, tmp_path: Path) -> None:
    model, folder = pair
    prompts = [[5, 9, 2, 77, 129, 3], [8, 4], [111]]
    feeds = prefill_feeds([Prompt(ids=tuple(p)) for p in prompts], api.open_checkpoint(folder).config)
    ids, mask, positions = map(torch.from_numpy, feeds.named().values())
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits.numpy()
    source = folder if runtime == "torch" else api.export(folder, tmp_path / "onnx")
    with api.load_session(source) as session:
        found = session.prefill(feeds)
        scale = np.abs(expected).max()
        assert difference(found, expected, feeds.attention_mask) <= 1e-5 * scale
        rows = generate_ids(session, prompts, stopping=Stopping(max_new_tokens=20))
    for row, prompt in zip(rows, prompts, strict=True):
        generated = model.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False, pad_token_id=0)
        assert row.ids == generated[0, len(prompt) :].tolist()


def test_greedy_with_repetition_penalty(pair: tuple[PreTrainedModel, Path]) -> None:
    model, folder = pair
    prompt = [5, 9, 2]
    expected = model.generate(
        torch.tensor([prompt]), max_new_tokens=15, do_sample=False, repetition_penalty=1.3, pad_token_id=0
    )
    with api.load_session(folder) as session:
        (row,) = generate_ids(
            session, [prompt], stopping=Stopping(max_new_tokens=15), sampling=Sampling(repetition_penalty=1.3)
        )
    assert row.ids == expected[0, 3:].tolist()
