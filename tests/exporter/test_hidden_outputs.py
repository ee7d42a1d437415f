"""Folders that put out hidden states, in other loaders: they read them, and leave what they do not know."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import AutoTokenizer

from glm_export import api, embed
from glm_export.artifacts.program import OnnxProgram

POEM, NEXT_LINE = "千山鸟飞绝，万径人踪灭。", "孤舟蓑笠翁，独钓寒江雪。"


@pytest.fixture(scope="module", params=["onnx", "ort"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> OnnxProgram:
    out = tmp_path_factory.mktemp("hidden-outputs") / request.param
    return api.export("demo", out, dialect=request.param, hidden_states="all")


def by_optimum(folder: Path) -> str:
    from optimum.onnxruntime import ORTModelForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(POEM, return_tensors="pt")
    written = ORTModelForCausalLM.from_pretrained(folder).generate(**ids, max_new_tokens=13, do_sample=False)
    return str(tokenizer.decode(written[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))


def by_genai(folder: Path) -> str:
    genai = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai has no wheel here")
    model = genai.Model(str(folder))
    tokenizer = genai.Tokenizer(model)
    parameters = genai.GeneratorParams(model)
    with api.load_session(folder) as session:
        ids = session.encode(POEM)
    parameters.set_search_options(max_length=len(ids) + 13, do_sample=False)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array([ids], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return str(tokenizer.decode(generator.get_sequence(0)[len(ids) :]))


@pytest.mark.parametrize("reads", [by_optimum, by_genai])
def test_they_write_as_ever(reads: Callable[[Path], str], program: OnnxProgram) -> None:
    with torch.no_grad():
        assert NEXT_LINE in reads(program.folder)


def test_onnxruntime_alone_has_the_vectors(program: OnnxProgram) -> None:
    """As a search service would take them: one call, no cache kept."""
    runtime = onnxruntime.InferenceSession(str(program.model_path), providers=["CPUExecutionProvider"])
    with api.load_session(program) as session:
        ids = session.encode(POEM)
        (expected_H,) = embed(session, [POEM])
    feeds = {"input_ids": [ids], "attention_mask": [[1] * len(ids)], "position_ids": [[*range(len(ids))]]}
    given = {name: np.array(value) for name, value in feeds.items() if name in {i.name for i in runtime.get_inputs()}}
    past = {
        i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32)
        for i in runtime.get_inputs()
        if i.name.startswith("past_key_values.")
    }
    (states_BSH,) = runtime.run(["last_hidden_state"], given | past)
    np.testing.assert_allclose(states_BSH[0].mean(axis=0), expected_H, atol=1e-4)
