"""The exported folder in Optimum's ``ORTModelForCausalLM``: it loads as it is, and writes the same ids."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.generation.generate import generate_ids
from glm_export.generation.stopping import Stopping
from tests.helpers.golden_data import CAUSAL, Golden


def optimum_greedy(program: OnnxProgram, prompt: list[int], count: int) -> list[int]:
    from optimum.onnxruntime import ORTModelForCausalLM

    model = ORTModelForCausalLM.from_pretrained(program.folder, provider="CPUExecutionProvider")
    model.generation_config.eos_token_id = None
    output = model.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False, pad_token_id=0)
    ids: list[int] = output[0, len(prompt) :].tolist()
    return ids


# Optimum takes the head size for hidden_size / heads, which GLM-4.5's is not.
@pytest.mark.parametrize("name", [name for name in CAUSAL if name != "glm4_moe"])
def test_golden_greedy_ids(name: str, exported: Callable[[str], OnnxProgram]) -> None:
    for case in Golden(name).facts["greedy"]:
        assert optimum_greedy(exported(name), case["prompt_ids"], len(case["new_ids"])) == case["new_ids"]


def test_embedded_model(demo_program: OnnxProgram) -> None:
    with api.load_session(demo_program) as session:
        prompt = session.tokenizer.encode("千山鸟飞绝，万径人踪灭。")
        (row,) = generate_ids(session, [prompt], stopping=Stopping(max_new_tokens=14))
        assert session.tokenizer.decode(row.ids).strip() == "孤舟蓑笠翁，独钓寒江雪。"
    assert optimum_greedy(demo_program, prompt, 14) == row.ids
