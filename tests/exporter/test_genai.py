"""The exported folder in onnxruntime-genai: it loads as it is, writes the golden ids, reads and renders prompts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.embedded import poems
from glm_export.errors import ConfigError
from glm_export.exporter.genai_config import GENAI_CONFIG, genai_config
from glm_export.generation.generate import generate_ids
from glm_export.generation.stopping import Stopping
from glm_export.tokenizers import load_tokenizer
from glm_export.tokenizers.conversion import GUARD
from tests.helpers.golden_data import CAUSAL, PREFIX, WITH_TOKENIZER, Golden
from tests.tokenizers.test_conversion import SYSTEM
from tests.tokenizers.test_tokenizers import conversation

genai = pytest.importorskip(
    "onnxruntime_genai",
    reason="onnxruntime-genai is not installed (make does so where it has a wheel: not for Python 3.10)",
    exc_type=ImportError,
)

genai.disable_telemetry_events()

FAMILIES_IN = {"onnx": CAUSAL, "ort": CAUSAL, "portable": ("chatglm3",)}
"""The families tried in each dialect."""
POEM, NEXT_LINE = "千山鸟飞绝，万径人踪灭。", "孤舟蓑笠翁，独钓寒江雪。"


@pytest.fixture(scope="module")
def program_in(
    exported: Callable[[str], OnnxProgram], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], OnnxProgram]:
    """The float32 program of a golden checkpoint in a dialect, made once."""
    made: dict[tuple[str, str], OnnxProgram] = {}
    root = tmp_path_factory.mktemp("genai")

    def program(name: str, dialect: str) -> OnnxProgram:
        if dialect == "onnx":
            return exported(name)
        if (name, dialect) not in made:
            made[name, dialect] = api.export(Golden(name).folder, root / f"{name}-{dialect}", dialect=dialect)
        return made[name, dialect]

    return program


def generate(folder: Path, chunks: Sequence[list[int]], count: int) -> list[int]:
    """Greedy ids after the prompt, given in one chunk or more, until genai says it is done."""
    model = genai.Model(str(folder))
    options = genai.GeneratorParams(model)
    options.set_search_options(max_length=sum(map(len, chunks)) + count)
    generator = genai.Generator(model, options)
    for chunk in chunks:
        generator.append_tokens(chunk)
    ids: list[int] = []
    while not generator.is_done():
        generator.generate_next_token()
        ids.append(int(generator.get_next_tokens()[0]))
    return ids


def tokenizer_of(folder: Path) -> Any:
    return genai.Tokenizer(genai.Model(str(folder)))


def encode(tokenizer: Any, text: str) -> list[int]:
    return [int(i) for i in tokenizer.encode(text)]


def stream(tokenizer: Any, ids: Sequence[int]) -> str:
    decoder = tokenizer.create_stream()
    return "".join(decoder.decode(i) for i in ids)


def changed(program: OnnxProgram, folder: Path, file: str, change: Callable[[dict], None]) -> Path:
    """A copy of the folder with one of its JSON files changed."""
    shutil.copytree(program.folder, folder)
    values = json.loads((folder / file).read_text())
    change(values)
    (folder / file).write_text(json.dumps(values))
    return folder


# -- generation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dialect", "name"), [(dialect, name) for dialect in FAMILIES_IN for name in FAMILIES_IN[dialect]]
)
def test_golden_greedy_ids(dialect: str, name: str, program_in: Callable[[str, str], OnnxProgram]) -> None:
    program = program_in(name, dialect)
    for case in Golden(name).facts["greedy"]:
        expected: list[int] = case["new_ids"]
        # The golden ids go on behind a stop id; genai must know each of them.
        end = next((at for at, i in enumerate(expected) if i in program.config.eos_token_ids), len(expected))
        prompt = case["prompt_ids"]
        assert generate(program.folder, [prompt], len(expected)) == expected[: end + 1]
        assert generate(program.folder, [prompt[:2], prompt[2:]], len(expected)) == expected[: end + 1]


@pytest.mark.parametrize("dialect", FAMILIES_IN)
def test_batch_is_padded_on_the_right(dialect: str, program_in: Callable[[str, str], OnnxProgram]) -> None:
    """Which is genai's way, and not ours."""
    program, count = program_in("chatglm3", dialect), 12
    cases = Golden("chatglm3").facts["greedy"]
    longest = max(len(case["prompt_ids"]) for case in cases)
    pad = program.config.pad_token_id
    rows = [case["prompt_ids"] + [pad] * (longest - len(case["prompt_ids"])) for case in cases]
    model = genai.Model(str(program.folder))
    options = genai.GeneratorParams(model)
    options.set_search_options(max_length=longest + count, batch_size=len(rows))
    generator = genai.Generator(model, options)
    generator.append_tokens(np.array(rows, dtype=np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    for row, case in enumerate(cases):
        assert generator.get_sequence(row)[longest:].tolist() == case["new_ids"][:count]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_last_logits_only(dtype: str, tmp_path: Path) -> None:
    program = api.export(Golden("chatglm2").folder, tmp_path / "out", logits="last", dtype=dtype)
    case = Golden("chatglm2").facts["greedy"][0]
    ids = generate(program.folder, [case["prompt_ids"]], 8)
    with api.load_session(program) as session:
        (row,) = generate_ids(session, [case["prompt_ids"]], stopping=Stopping(max_new_tokens=8))
    assert ids == row.ids
    assert dtype != "float32" or ids == case["new_ids"][:8]


def test_embedded_model_recites(demo_program: OnnxProgram) -> None:
    with api.load_session(demo_program) as session:
        prompt = session.tokenizer.encode(POEM)
        (row,) = generate_ids(session, [prompt], stopping=Stopping(max_new_tokens=14))
        text = session.tokenizer.decode(row.ids)
    assert text.strip() == NEXT_LINE
    tokenizer = tokenizer_of(demo_program.folder)
    assert encode(tokenizer, f"{GUARD}[gMASK]{GUARD}sop{POEM}") == prompt
    ids = generate(demo_program.folder, [prompt], 14)
    assert ids == row.ids
    assert stream(tokenizer, ids) == text


def test_what_onnxruntime_has_to_be_told_is_in_the_config(tmp_path: Path) -> None:
    """Every recipe is run in ``test_loader_cells.py``; without the entry this one does not load."""
    ranges = api.calibrate("demo", tmp_path / "ranges", corpus="poems", max_samples=4)
    program = api.export("demo", tmp_path / "out", recipe="fp8", ranges=ranges)

    def forget(values: dict) -> None:
        del values["model"]["decoder"]["session_options"]["session.disable_quant_qdq"]

    with pytest.raises(Exception, match="float8e4m3fn"):
        generate(changed(program, tmp_path / "c", GENAI_CONFIG, forget), [[5, 6, 7]], 4)


# -- text --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_TOKENIZER)
def test_golden_texts(name: str, exported: Callable[[str], OnnxProgram]) -> None:
    """genai's ``encode`` leaves the prefix to the chat template."""
    program = exported(name)
    ours, tokenizer = load_tokenizer(program.folder, program.config), tokenizer_of(program.folder)
    for case in Golden(name).tokenizer["texts"]:
        assert encode(tokenizer, case["text"]) == case["ids_plain"]
        expected = ours.decode(case["ids"])
        assert stream(tokenizer, case["ids"]) == expected
        assert not expected or tokenizer.decode(case["ids"]) == expected


@pytest.mark.parametrize("name", WITH_TOKENIZER)
def test_golden_chats(name: str, exported: Callable[[str], OnnxProgram]) -> None:
    tokenizer = tokenizer_of(exported(name).folder)
    for case in Golden(name).tokenizer["chat"]:
        prompts = {"ids": conversation(case), "ids_with_system": [SYSTEM, *conversation(case)]}
        for key, messages in prompts.items():
            if key in case:
                text = tokenizer.apply_chat_template(json.dumps(messages, ensure_ascii=False))
                assert encode(tokenizer, text) == case[key]


def test_whole_sentencepiece_pieces(demo_program: OnnxProgram) -> None:
    """genai cuts text into words by default, which takes verses apart; a long text must not overflow its stack."""
    ours, tokenizer = load_tokenizer(demo_program.folder, demo_program.config), tokenizer_of(demo_program.folder)
    lines = [line for poem in poems() for line in poem.lines]
    for text in ("".join(lines)[:3000], "\n".join(lines)[:3000], POEM * 4000):
        assert encode(tokenizer, text) == ours.encode_plain(text)


# -- controls: what would go wrong, does -------------------------------------------------------------------------------


def test_exchanged_ids_are_noticed(tmp_path: Path, exported: Callable[[str], OnnxProgram]) -> None:
    def exchange(values: dict) -> None:
        vocabulary = values["model"]["vocab"]
        vocabulary["你"], vocabulary["好"] = vocabulary["好"], vocabulary["你"]

    tokenizer = tokenizer_of(changed(exported("chatglm2"), tmp_path / "c", "tokenizer.json", exchange))
    case = Golden("chatglm2").tokenizer["texts"][0]
    assert case["text"] == "你好"
    assert sorted(encode(tokenizer, "你好")) == sorted(case["ids_plain"])
    assert encode(tokenizer, "你好") != case["ids_plain"]


def test_a_concatenated_cache_in_a_shared_buffer_fails(tmp_path: Path, exported: Callable[[str], OnnxProgram]) -> None:
    def share(values: dict) -> None:
        assert values["search"]["past_present_share_buffer"] is False
        values["search"]["past_present_share_buffer"] = True

    folder = changed(exported("chatglm2"), tmp_path / "c", GENAI_CONFIG, share)
    with pytest.raises(Exception, match="total_sequence_length"):
        generate(folder, [Golden("chatglm2").facts["greedy"][0]["prompt_ids"]], 4)


def test_without_stop_ids_it_goes_on(tmp_path: Path, exported: Callable[[str], OnnxProgram]) -> None:
    folder = changed(
        exported("glm4_moe"), tmp_path / "c", GENAI_CONFIG, lambda values: values["model"].pop("eos_token_id")
    )
    case = Golden("glm4_moe").facts["greedy"][2]
    assert set(case["new_ids"]) & set(exported("glm4_moe").config.eos_token_ids)
    assert generate(folder, [case["prompt_ids"]], len(case["new_ids"])) == case["new_ids"]


@pytest.mark.parametrize("name", PREFIX)
def test_prefix_families_get_no_config(name: str, exported: Callable[[str], OnnxProgram]) -> None:
    program = exported(name)
    assert not (program.folder / GENAI_CONFIG).exists()
    with pytest.raises(ConfigError, match="causal masks only"):
        genai_config(program.config, program.signature, filename="model.onnx", stops=())
