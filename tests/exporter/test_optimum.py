"""The exported folder in Optimum's ``ORTModelForCausalLM``: it loads as it is and writes the same ids, or it refuses.

Batches, streams and pipelines are transformers' own, fed by the tokenizer files of the folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, TextStreamer, pipeline

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.exporter.loader_files import TOKENIZER_CONFIG
from glm_export.generation.generate import generate_ids
from glm_export.generation.stopping import Stopping
from tests.helpers.golden_data import CAUSAL, PREFIX, WITH_TOKENIZER, Golden

TEXTS = ["千山鸟飞绝，万径人踪灭。", "床前明月光，", "国破山河在，城春草木深。\n感时花溅泪，恨别鸟惊心。"]
OFFERED = {
    "onnx": [name for name in CAUSAL if name != "glm4_moe"], "ort": [name for name in CAUSAL if name != "glm4_moe"],
    "portable": ["chatglm2", "glm_hf"],
}  # fmt: skip
"""Families tried in each dialect. Optimum takes the head size for hidden_size / heads, which GLM-4.5's is not."""
Programs = Callable[..., OnnxProgram]


@pytest.fixture(scope="module")
def program_of(exported: Callable[[str], OnnxProgram], tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """A float32 program of a golden checkpoint or of the embedded model, made once."""
    made: dict[tuple[str, str, str | None], OnnxProgram] = {}
    root = tmp_path_factory.mktemp("optimum")

    def program(name: str, dialect: str, logits: str | None = None) -> OnnxProgram:
        key = (name, dialect, logits)
        if key not in made:
            source = "demo" if name == "demo" else Golden(name).folder
            out = root / "-".join(filter(None, key))
            plain = dialect == "onnx" and logits is None and name != "demo"
            options = {"max_length": 64} if dialect == "tensorrt" else {}
            made[key] = exported(name) if plain else api.export(source, out, dialect=dialect, logits=logits, **options)
        return made[key]

    return program


def loaded(program: OnnxProgram) -> Any:
    from optimum.onnxruntime import ORTModelForCausalLM

    return ORTModelForCausalLM.from_pretrained(program.folder, provider="CPUExecutionProvider")


def optimum_greedy(program: OnnxProgram, prompt: list[int], count: int) -> list[int]:
    model = loaded(program)
    model.generation_config.eos_token_id = None
    output = model.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False, pad_token_id=0)
    ids: list[int] = output[0, len(prompt) :].tolist()
    return ids


def ours(program: OnnxProgram, prompts: Sequence[str], count: int) -> list[list[int]]:
    """Ids of our own greedy answers, each prompt alone."""
    with api.load_session(program) as session:
        stopping = api.stopping_for(session, count)
        return [generate_ids(session, [session.encode(text)], stopping=stopping)[0].ids for text in prompts]


def padded(program: OnnxProgram, prompts: Sequence[str], count: int, **settings: Any) -> list[list[int]]:
    """Ids that transformers writes after a batch which the folder's tokenizer has padded, without those of its end."""
    model, tokenizer = loaded(program), AutoTokenizer.from_pretrained(program.folder, **settings)
    batch = tokenizer(list(prompts), padding=True, return_tensors="pt")
    assert 0 in batch.attention_mask
    written = model.generate(**batch, max_new_tokens=count, do_sample=False)[:, batch.input_ids.shape[1] :].tolist()
    ends = set(model.generation_config.eos_token_id)
    return [row[: next((at for at, i in enumerate(row) if i in ends), len(row))] for row in written]


# -- the same ids ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dialect", "name"), [(dialect, name) for dialect in OFFERED for name in OFFERED[dialect]])
def test_golden_greedy_ids(dialect: str, name: str, program_of: Programs) -> None:
    for case in Golden(name).facts["greedy"]:
        assert optimum_greedy(program_of(name, dialect), case["prompt_ids"], len(case["new_ids"])) == case["new_ids"]


@pytest.mark.parametrize(("dialect", "logits"), [("onnx", None), ("onnx", "last"), ("ort", None), ("portable", None)])
def test_prompts_of_unequal_length_in_one_batch(dialect: str, logits: str | None, program_of: Programs) -> None:
    program = program_of("demo", dialect, logits)
    assert padded(program, TEXTS, 24) == ours(program, TEXTS, 24)


@pytest.mark.parametrize("dialect", ["onnx", "ort"])
@pytest.mark.parametrize("name", WITH_TOKENIZER)
def test_padded_batches_of_every_family(name: str, dialect: str, program_of: Programs) -> None:
    program, texts = program_of(name, dialect), ["hello world, hello", "你好", "a"]
    assert padded(program, texts, 12) == ours(program, texts, 12)


@pytest.mark.parametrize("dialect", OFFERED)
def test_streams_pipelines_and_beams(dialect: str, program_of: Programs) -> None:
    class Collected(TextStreamer):
        text = ""

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            self.text += text

    program = program_of("demo", dialect)
    model, tokenizer = loaded(program), AutoTokenizer.from_pretrained(program.folder)
    with api.load_session(program) as session:
        expected = [text.strip() for text in api.generate(session, TEXTS, max_new_tokens=24)]
        reply = api.chat(session, [{"role": "user", "content": TEXTS[0]}])
    streamed = Collected(tokenizer, skip_prompt=True, skip_special_tokens=True)
    model.generate(**tokenizer(TEXTS[:1], return_tensors="pt"), max_new_tokens=24, streamer=streamed)
    assert streamed.text.strip() == expected[0]
    write = pipeline("text-generation", model=model, tokenizer=tokenizer)
    for size in (1, 3):
        answers = write(TEXTS, batch_size=size, max_new_tokens=24, return_full_text=False)
        assert [answer[0]["generated_text"].strip() for answer in answers] == expected
    turns = write([{"role": "user", "content": TEXTS[0]}], max_new_tokens=24)[0]["generated_text"]
    assert turns[-1]["content"].strip() == reply
    # Beams copy rows of the cache about; the poem is the likeliest by far.
    best = model.generate(**tokenizer(TEXTS[:1], return_tensors="pt"), max_new_tokens=24, num_beams=3)
    assert tokenizer.decode(best[0], skip_special_tokens=True).strip().endswith(expected[0])


def test_embedded_model(demo_program: OnnxProgram) -> None:
    with api.load_session(demo_program) as session:
        prompt = session.tokenizer.encode("千山鸟飞绝，万径人踪灭。")
        (row,) = generate_ids(session, [prompt], stopping=Stopping(max_new_tokens=14))
        assert session.tokenizer.decode(row.ids).strip() == "孤舟蓑笠翁，独钓寒江雪。"
    assert optimum_greedy(demo_program, prompt, 14) == row.ids


# -- what says so ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dialect", "side"), [("onnx", "left"), ("portable", "left"), ("ort", "right")])
def test_the_tokenizer_says_what_the_program_takes(dialect: str, side: str, program_of: Programs) -> None:
    folder = program_of("demo", dialect).folder
    settings = json.loads((folder / TOKENIZER_CONFIG).read_text(encoding="utf-8"))
    assert (settings["padding_side"], settings["model_input_names"]) == (side, ["input_ids", "attention_mask"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert set(tokenizer("a")) == {"input_ids", "attention_mask"}
    assert tokenizer(["a", "a b c"], padding=True).attention_mask[0][0 if side == "left" else -1] == 0


# -- what would go wrong refuses, or does ------------------------------------------------------------------------------


def test_the_other_side_goes_wrong_or_refuses(program_of: Programs) -> None:
    """The control: without the folder's side the text is another. Where rows fill the cache alone, that is an error."""
    for dialect in ("onnx", "portable"):
        program = program_of("demo", dialect)
        assert padded(program, TEXTS, 24, padding_side="right")[:2] != ours(program, TEXTS[:2], 24)
    with pytest.raises(Exception, match=r"seqlens_k\[0\] = -1 is out of range"):
        padded(program_of("demo", "ort"), TEXTS, 24, padding_side="left")
    # Where the operator does not rotate, it refuses as well.
    with pytest.raises(Exception, match=r"seqlens_k\[\d\] = -1 is out of range"):
        padded(program_of("chatglm2", "ort"), ["hello world, hello", "a"], 4, padding_side="left")


def test_where_the_last_column_is_padding_batches_are_refused(program_of: Programs) -> None:
    """Optimum reads the last column of the logits: of a shorter row padding, in an ``ort`` program with all of them."""
    program = program_of("demo", "ort", "all")
    tokenizer, model = AutoTokenizer.from_pretrained(program.folder), loaded(program)
    with pytest.raises(ValueError, match="does not have a padding token"):
        tokenizer(TEXTS, padding=True)
    for text, expected in zip(TEXTS, ours(program, TEXTS, 24), strict=True):  # alone it goes on working
        one = tokenizer(text, return_tensors="pt")
        written = model.generate(**one, max_new_tokens=24)[0, one.input_ids.shape[1] :].tolist()
        assert written[: len(expected)] == expected
    # The control: whoever pads all the same gets another text.
    assert padded(program, TEXTS, 24, pad_token=tokenizer.eos_token)[:2] != ours(program, TEXTS[:2], 24)


def test_a_padding_token_in_another_file_is_no_way_around(tmp_path: Path, program_of: Programs) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for path in Golden("glm_hf").folder.iterdir():
        if "golden" not in path.name:
            (folder / path.name).write_bytes(path.read_bytes())
    converted = program_of("glm4_remote", "onnx").folder
    (folder / "tokenizer.json").write_bytes((converted / "tokenizer.json").read_bytes())
    named = {"pad_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    for name in (TOKENIZER_CONFIG, "special_tokens_map.json"):
        (folder / name).write_text(json.dumps(named))
    for logits, token in (("last", "<|endoftext|>"), ("all", None)):
        program = api.export(folder, tmp_path / logits, dialect="ort", logits=logits)
        tokenizer = AutoTokenizer.from_pretrained(program.folder)
        assert (tokenizer.pad_token, tokenizer.eos_token) == (token, "<|endoftext|>")


@pytest.mark.parametrize(
    ("name", "dialect"),
    [*((name, "onnx") for name in (*PREFIX, "glm4_moe")), ("chatglm2", "tensorrt"), ("glm4_moe", "ort")],
)
def test_what_is_not_offered_ends_in_an_error(name: str, dialect: str, program_of: Programs) -> None:
    with pytest.raises(Exception, match=r".+"):
        optimum_greedy(program_of(name, dialect), [5, 6, 7], 4)
