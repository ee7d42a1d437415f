"""The exported folder in ONNX Runtime alone, as the documentation says to feed it: the same ids, the same numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from glm_export import api
from glm_export.artifacts.program import MODEL, OnnxProgram
from glm_export.calibration.ranges import Ranges
from glm_export.exporter.genai_config import GENAI_CONFIG
from glm_export.generation.generate import generate_ids
from glm_export.generation.stopping import Stopping
from glm_export.sessions.onnxruntime.session import OrtSession

TEXTS = ["千山鸟飞绝，万径人踪灭。", "床前明月光，", "国破山河在，城春草木深。\n感时花溅泪，恨别鸟惊心。"]
NEW = 16
Arrays = dict[str, np.ndarray]


def session_of(folder: Path, *, told: bool = True) -> onnxruntime.InferenceSession:
    """Told what ``genai_config.json`` says, or nothing."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    given = json.loads((folder / GENAI_CONFIG).read_text())["model"]["decoder"]["session_options"]
    for key, value in given.items() if told else ():
        if key.startswith("session."):
            options.add_session_config_entry(key, value)
    return onnxruntime.InferenceSession(str(folder / MODEL), options, providers=["CPUExecutionProvider"])


def empty(session: onnxruntime.InferenceSession, rows: int) -> Arrays:
    pasts = [given for given in session.get_inputs() if given.name.startswith("past")]
    dtypes = {"tensor(float)": np.float32, "tensor(int8)": np.int8}
    return {given.name: np.zeros((rows, given.shape[1], 0, given.shape[3]), dtypes[given.type]) for given in pasts}


def written(session: onnxruntime.InferenceSession, prompts: Sequence[list[int]]) -> list[list[int]]:
    """Greedy ids after prompts of any lengths: padded on the left with positions, or on the right without."""
    left = "position_ids" in {given.name for given in session.get_inputs()}
    width = max(map(len, prompts))
    ids = np.zeros((len(prompts), width), np.int64)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        at = slice(width - len(prompt), width) if left else slice(len(prompt))
        ids[row, at], mask[row, at] = prompt, 1
    past, answers = empty(session, len(prompts)), list[np.ndarray]()
    names = [output.name for output in session.get_outputs()]
    for _ in range(NEW):
        positions = {"position_ids": np.maximum(mask.cumsum(axis=1) - 1, 0)[:, -ids.shape[1] :]} if left else {}
        given = {"input_ids": ids, "attention_mask": mask} | positions | past
        outputs = dict(zip(names, session.run(names, given), strict=True))
        ids = outputs["logits"][:, -1].argmax(axis=-1)[:, None]
        answers.append(ids)
        past = {name.replace("present", "past_key_values"): outputs[name] for name in names if name != "logits"}
        mask = np.concatenate([mask, np.ones_like(ids)], axis=1)
    return np.concatenate(answers, axis=1).tolist()


def ours(program: OnnxProgram, texts: Sequence[str]) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts, and what our own session writes after each alone."""
    with api.load_session(program) as session:
        prompts = [session.encode(text) for text in texts]
        rows = [generate_ids(session, [prompt], stopping=Stopping(max_new_tokens=NEW))[0] for prompt in prompts]
    return prompts, [row.ids for row in rows]


@pytest.mark.parametrize(
    ("dialect", "logits"), [("onnx", "all"), ("onnx", "last"), ("ort", "last"), ("portable", "all")]
)
def test_batches_write_what_each_prompt_writes_alone(dialect: str, logits: str, tmp_path: Path) -> None:
    program = api.export("demo", tmp_path / "out", dialect=dialect, logits=logits)
    prompts, expected = ours(program, TEXTS)
    session = session_of(program.folder)
    assert written(session, prompts) == expected
    assert [written(session, [prompt])[0] for prompt in prompts] == expected


def test_a_row_that_begins_with_padding_is_refused(tmp_path: Path) -> None:
    """Programs of ``ort`` count each row's tokens from its first column; the answers would be another text's."""
    session = session_of(api.export("demo", tmp_path / "out", dialect="ort").folder)
    for mask in ([[0, 1, 1], [1, 1, 1]], [[0, 0, 1], [1, 1, 1]], [[0, 0, 0], [1, 1, 1]]):
        feeds = {"input_ids": np.full((2, 3), 5), "attention_mask": np.array(mask)} | empty(session, 2)
        with pytest.raises(Exception, match=r"seqlens_k\[0\] = -1 is out of range"):
            session.run(["logits"], feeds)
    good = {"input_ids": np.full((2, 3), 5), "attention_mask": np.array([[1, 1, 0], [1, 1, 1]])}
    assert np.isfinite(session.run(["logits"], good | empty(session, 2))[0]).all()


# -- session options ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranges(tmp_path_factory: pytest.TempPathFactory) -> Ranges:
    return api.calibrate("demo", tmp_path_factory.mktemp("ranges") / "ranges", corpus="poems", max_samples=4)


def logits_of(session: onnxruntime.InferenceSession, prompt: list[int]) -> np.ndarray:
    ids = np.array([prompt])
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    if "position_ids" in {one.name for one in session.get_inputs()}:
        given["position_ids"] = np.arange(len(prompt))[None]
    return session.run(["logits"], given | empty(session, 1))[0][0, -1]


@pytest.mark.parametrize(
    ("recipe", "dialect", "needed"),
    [
        ("fp8", "onnx", True), ("int4-weights", "onnx", True), ("int8-weights-block", "onnx", True),
        ("int8-kv", "onnx", False), ("int8-dynamic", "ort", False), ("int8-smoothquant", "portable", False),
    ],
)  # fmt: skip
def test_told_what_the_folder_says_it_computes_what_our_session_does(
    recipe: str, dialect: str, needed: bool, ranges: Ranges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glm_export.sessions.onnxruntime.runtime.usable_threads", lambda: 1)
    given = ranges if recipe in ("fp8", "int8-kv", "int8-smoothquant") else None
    program = api.export("demo", tmp_path / "out", dialect=dialect, recipe=recipe, ranges=given)
    with OrtSession(program) as session:
        prompt = session.encode(TEXTS[0])
        expected = session.prefill(session.feeds([session.prompt(prompt)]))[0, -1]
    np.testing.assert_array_equal(logits_of(session_of(program.folder), prompt), expected)
    if recipe == "fp8":
        with pytest.raises(Exception, match="float8e4m3fn"):
            session_of(program.folder, told=False)
        return
    untold = logits_of(session_of(program.folder, told=False), prompt)
    assert (np.abs(untold - expected).max() > 0) == needed


def test_a_program_that_is_not_quantized_needs_nothing(demo_program: OnnxProgram) -> None:
    values = json.loads((demo_program.folder / GENAI_CONFIG).read_text())
    assert set(values["model"]["decoder"]["session_options"]) == {"log_id", "provider_options"}
