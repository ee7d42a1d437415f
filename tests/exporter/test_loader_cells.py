"""Every cell of loader, dialect and recipe in ``docs/loaders.md``: tried here, and the page says what the code says.

ONNX Runtime alone: ``test_plain_onnxruntime.py``; families: ``test_genai.py``, ``test_optimum.py``,
``test_openvino.py``; transformers.js and Foundry Local: ``test_other_programs.py``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.calibration import recipes
from glm_export.deployment.subject import subject_of
from glm_export.exporter.card.loaders import (
    GENAI,
    JUDGES,
    LM_EVAL,
    OPENVINO,
    OPTIMUM,
    Subject,
    explicit_blocks,
    verdicts,
)
from glm_export.exporter.options import dialects_of
from glm_export.generation.generate import generate_ids
from glm_export.graphs import dialects
from glm_export.proof.check import quantization_of
from glm_export.sessions.torch import TorchSession
from glm_export.spec.config import GlmConfig
from glm_export.spec.session_entries import session_entries
from glm_export.spec.signature import Cache, decoder_signature
from tests.exporter.test_genai import generate
from tests.exporter.test_openvino import ENVIRONMENT, pytestmark as with_openvino
from tests.helpers.golden_data import Golden

DOCS = (Path(__file__).parents[2] / "docs" / "loaders.md").read_text(encoding="utf-8")
LINE = "床前明月光，"
RUN = {name: dialects.load(name) for name in ("onnx", "portable", "ort", "tensorrt")}
CELLS = [
    (dialect, recipe)
    for dialect in ("onnx", "portable", "ort")
    for recipe in (None, *recipes.names())
    if recipe is None or dialect in dialects_of(recipes.load(recipe))
]
IN_BLOCKS: list[tuple[str, str | None, dict[str, Any]]] = [
    ("onnx", "int4-weights", {"block_size": 16}),
    ("onnx", "int4-weights", {"block_size": 64, "head_bits": 4}),
    ("onnx", "int4-weights", {"block_size": 128}),
    ("onnx", "int8-weights-block", {"block_size": 64}),
]
"""What ``--block-size`` makes of them; the embedded model's widths are 192 and 512."""
EXACT = 1e-5
"""Of the largest logit, where nothing but weights, keys and values is rounded, or rounding is bit for bit the same."""
ROUNDED = 0.15
"""Where a runtime rounds what a product reads in a way of its own; the token is the same."""
OPENVINO_SCRIPT = """
import json, sys
import numpy as np, openvino
hints = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
told = {}
for folder in sys.argv[2:]:
    try:
        model = openvino.Core().compile_model(folder + "/model.onnx", "CPU", hints)
        feeds = dict(np.load(folder + "-feeds.npz"))
        told[folder] = model({port.any_name: feeds[port.any_name] for port in model.inputs})["logits"][0, -1].tolist()
    except RuntimeError as error:
        told[folder] = str(error)
json.dump(told, open(sys.argv[1], "w"))
"""


@pytest.fixture(scope="module")
def program_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., OnnxProgram]:
    """The embedded model in a dialect and recipe, and with other options where they are given, made once."""
    root, made = tmp_path_factory.mktemp("cells"), dict[tuple, OnnxProgram]()
    ranges = {
        name: api.calibrate("demo", root / f"ranges-{name}", corpus="poems", max_samples=2, recipe=recipe)
        for name, recipe in (("ranges", None), ("ranges of its own", "int4-gptq"))
    }

    def program(dialect: str, recipe: str | None, **options: Any) -> OnnxProgram:
        key = (dialect, recipe, *options.items())
        if key not in made:
            given = options | {"ranges": ranges.get(recipes.load(recipe).needs if recipe else "nothing")}
            out = root / "-".join(map(str, (dialect, recipe, *options.values())))
            made[key] = api.export("demo", out, dialect=dialect, recipe=recipe, **given)
        return made[key]

    return program


def by_optimum(program: OnnxProgram, prompt: list[int], count: int) -> list[int]:
    from optimum.onnxruntime import ORTModelForCausalLM

    options = onnxruntime.SessionOptions()
    for key, value in session_entries(program.recipe).items():
        options.add_session_config_entry(key, value)
    model = ORTModelForCausalLM.from_pretrained(
        program.folder, provider="CPUExecutionProvider", session_options=options
    )
    answer = model.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False)
    ids: list[int] = answer[0, len(prompt) :].tolist()
    return ids


@pytest.mark.parametrize(("dialect", "recipe"), CELLS)
def test_genai_and_optimum_write_what_our_session_writes(
    dialect: str, recipe: str | None, program_of: Callable[..., OnnxProgram]
) -> None:
    program = program_of(dialect, recipe)
    told = verdicts(subject_of(program))
    assert told[GENAI].runs
    assert told[OPTIMUM].runs
    with api.load_session(program) as session:
        prompt = session.encode(LINE)
        (row,) = generate_ids(session, [prompt], stopping=api.stopping_for(session, 24))
    assert len(row.ids) > 4
    assert generate(program.folder, [prompt], 24)[: len(row.ids)] == row.ids
    assert by_optimum(program, prompt, 24)[: len(row.ids)] == row.ids


@with_openvino
def rounded_in_pytorch(program: OnnxProgram) -> np.ndarray:
    """The last logits with weights rounded as in the program, and nothing else."""
    with TorchSession(api.open_checkpoint("demo"), "float32", "cpu", quantization_of(program)) as session:
        return session.prefill(session.feeds([session.prompt(session.encode(LINE))]))[0, -1].copy()


def test_openvino_says_what_our_session_says(program_of: Callable[..., OnnxProgram], tmp_path: Path) -> None:
    expected: dict[str, np.ndarray] = {}
    cells = [*((dialect, recipe, {}) for dialect, recipe in CELLS), *IN_BLOCKS]
    for dialect, recipe, options in cells:
        program = program_of(dialect, recipe, **options)
        with api.load_session(program) as session:
            feeds = session.feeds([session.prompt(session.encode(LINE))])
            expected[str(program.folder)] = session.prefill(feeds)[0, -1]
            prompt = np.array([session.encode(LINE)])
        pasts = [spec for spec in program.signature.inputs if spec.is_cache]
        given = {
            "input_ids": prompt,
            "attention_mask": np.ones_like(prompt),
            "position_ids": np.arange(prompt.size)[None],
        }
        empty = {spec.name: np.zeros((1, spec.dims[1], 0, spec.dims[3]), spec.dtype) for spec in pasts}
        np.savez(f"{program.folder}-feeds.npz", **given | empty)
    out = tmp_path / "told.json"
    command = [sys.executable, "-c", OPENVINO_SCRIPT, str(out), *expected]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(out.read_text())
    for dialect, recipe, options in cells:
        program = program_of(dialect, recipe, **options)
        found, logits = told[str(program.folder)], expected[str(program.folder)]
        verdict = verdicts(subject_of(program))[OPENVINO]
        assert verdict.runs == isinstance(found, list), (dialect, recipe, found)
        if not verdict.runs:
            assert verdict.note == "it cuts no block of 128 short; `--block-size 64` suits it"
            assert "cannot be divided by block_size (128)" in found
            continue
        apart = float(np.abs(np.array(found) - logits).max() / np.abs(logits).max())
        rounds = recipe is not None and (dialect == "ort" or recipe in ("fp8", "int8-static"))
        if recipe in ("int4-int8-prompt", "int8-dynamic"):
            # Our session rounds a prompt's inputs with one scale for all; OpenVINO leaves them, as PyTorch does.
            reference = rounded_in_pytorch(program)
            apart, rounds = float(np.abs(np.array(found) - reference).max() / np.abs(reference).max()), False
        assert apart <= (ROUNDED if rounds else EXACT), (dialect, recipe, apart)
        assert int(np.argmax(found)) == int(logits.argmax())


# -- the page ----------------------------------------------------------------------------------------------------------


def config_of(kind: str) -> GlmConfig:
    return api.open_checkpoint(
        Golden({"causal": "chatglm3", "experts": "glm4_moe", "prefix": "glm"}[kind]).folder
    ).config


def subject(kind: str, dialect: str, logits: str | None = None, **signed: str) -> Subject:
    config, record = config_of(kind), RUN[dialect]
    cache = record.cache(config)
    length = 32 if cache is Cache.STATIC else 0
    signature = decoder_signature(
        config, dtype="float32", logits=logits or record.logits(config), cache=cache, max_length=length, **signed
    )
    return Subject(config=config, signature=signature)


def test_the_page_has_the_tables_of_the_code() -> None:
    kinds = {"causal": "causal", "experts": "GLM-4.5", "prefix": "GLM, ChatGLM-6B"}
    rows = [
        f"| {loader.name} | {families} | " + " | ".join(str(JUDGES[loader](subject(kind, name))) for name in RUN) + " |"
        for loader in JUDGES
        for kind, families in kinds.items()
    ]
    missing = [row for row in rows if row not in DOCS]
    assert not missing, "docs/loaders.md should hold:\n" + "\n".join(missing)
    for loader in JUDGES:
        assert f"| {loader.name} | {loader.tried} |" in DOCS


def test_other_logits_on_the_page() -> None:
    """What ``--logits`` changes beside the dialect's own."""
    lines = []
    for dialect, logits in (("onnx", "last"), ("portable", "last"), ("ort", "all"), ("ort", "recent")):
        cells = [str(JUDGES[loader](subject("causal", dialect, logits))) for loader in JUDGES]
        lines.append(f"| `{dialect}` | {logits} | " + " | ".join(cells) + " |")
    missing = [line for line in lines if line not in DOCS]
    assert not missing, "docs/loaders.md should hold:\n" + "\n".join(missing)


def test_recipes_on_the_page() -> None:
    """A recipe changes three things: what ONNX Runtime is told, the cache, and blocks that do not divide a width."""
    for recipe in recipes.names():
        form = recipes.load(recipe).carried_by(RUN["onnx"].can)
        plain = subject("causal", "onnx")
        signature = subject("causal", "onnx", cache_dtype="int8").signature if form.kv else plain.signature
        block, head = explicit_blocks(form)
        asked = Subject(config=plain.config, signature=signature, recipe=recipe, block=block, head_block=head)
        for loader, judge in JUDGES.items():
            if judge(asked) == judge(plain):
                continue
            row = f"| `{recipe}` | {loader.name} | {judge(asked)} |"
            assert row in DOCS, f"docs/loaders.md should hold:\n{row}"
            assert loader in (OPENVINO, LM_EVAL) or asked.told
