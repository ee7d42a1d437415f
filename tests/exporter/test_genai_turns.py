"""Conversations in onnxruntime-genai: what it makes of tokens that are appended after it has written some."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from glm_export import api
from tests.exporter.test_genai import genai

NEWER = Path(os.environ.get("GENAI_BUILDER", Path(sys.prefix) / "genai-builder"))
"""Where the transformers lies that the builder imports: 5, which Optimum does not take."""
PROMPT, MORE, NEW = [5, 6, 7, 8, 9, 10], [11, 12, 13], 5


def fresh(model: object) -> object:
    options = genai.GeneratorParams(model)
    options.set_search_options(max_length=64)
    return genai.Generator(model, options)


def written(generator: object) -> list[int]:
    ids = []
    for _ in range(NEW):
        generator.generate_next_token()
        ids.append(int(generator.get_next_tokens()[0]))
    return ids


def turns(model: object, *, rewind: bool) -> tuple[list[int], list[int]]:
    """What stands behind both turns, and what is written behind them."""
    generator = fresh(model)
    generator.append_tokens(PROMPT)
    reply = written(generator)
    if rewind:
        generator.rewind_to(len(PROMPT))
        generator.append_tokens([*reply, *MORE])
    else:
        generator.append_tokens(MORE)
    return [*PROMPT, *reply, *MORE], written(generator)


def alone(model: object, prompt: list[int]) -> list[int]:
    generator = fresh(model)
    generator.append_tokens(prompt)
    return written(generator)


@pytest.mark.parametrize("dialect", ["onnx", "ort", "portable"])
def test_going_back_to_the_prompt_is_right(dialect: str, tmp_path: Path) -> None:
    model = genai.Model(str(api.export("demo", tmp_path / "out", dialect=dialect).folder))
    prompt, answer = turns(model, rewind=True)
    assert answer == alone(model, prompt)
    # The control, and why: appending alone is answered as another prompt, or ends in an error.
    if dialect == "ort":
        prompt, answer = turns(model, rewind=False)
        assert answer != alone(model, prompt)
    else:
        with pytest.raises(Exception, match=r"total_sequence_length|pre-allocated shapes"):
            turns(model, rewind=False)


@pytest.fixture(scope="module")
def of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of random weights, exported by onnxruntime-genai's own builder."""
    if not (NEWER / "transformers").is_dir():
        pytest.skip(f"no transformers 5 in {NEWER}; make loaders puts it there, GENAI_BUILDER= says where it is")
    source, out = tmp_path_factory.mktemp("llama"), tmp_path_factory.mktemp("built")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3, eos_token_id=63, bos_token_id=62,
        pad_token_id=63,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(source)
    vocabulary = {f"t{number}": number for number in range(64)}
    words = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "t0"}
    (source / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": words}))
    PreTrainedTokenizerFast(tokenizer_file=str(source / "tokenizer.json"), eos_token="t63").save_pretrained(source)
    command = [
        sys.executable, "-W", "ignore", "-m", "onnxruntime_genai.models.builder", "-i", str(source), "-o", str(out),
        "-p", "fp32", "-e", "cpu", "-c", str(out / "cache"),
    ]  # fmt: skip
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(NEWER)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def test_the_fault_is_its_own(of_its_own: Path) -> None:
    """A model its builder made is answered as wrongly, and as rightly once it goes back."""
    model = genai.Model(str(of_its_own))
    prompt, answer = turns(model, rewind=False)
    assert answer != alone(model, prompt)
    prompt, answer = turns(model, rewind=True)
    assert answer == alone(model, prompt)
