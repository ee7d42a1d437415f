"""The exported folder in EleutherAI's lm-evaluation-harness, as it is and offline: its scores are those of PyTorch.

It runs in an environment of its own, with its own ONNX Runtime and transformers, and nothing of this package.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.deployment.subject import subject_of
from glm_export.embedded import poems
from glm_export.exporter.card.loaders import LM_EVAL, verdicts
from glm_export.sessions.torch import TorchSession
from tests.exporter.test_loader_cells import CELLS, program_of  # noqa: F401 - a fixture
from tests.helpers.golden_data import Golden
from tests.helpers.planted import plant

PYTHON = Path(os.environ.get("LM_EVAL", Path(sys.prefix) / "lm-eval" / "bin" / "python"))
pytestmark = pytest.mark.skipif(
    not PYTHON.is_file(),
    reason=f"no lm-eval in {PYTHON}; make lm-eval puts it there, LM_EVAL= says which Python has it",
)
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"}
ASKED = 12
TASK = """
task: next_line
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{line}}}}"
doc_to_target: answer
doc_to_choice: choices
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""
HARNESS = """
import json, sys
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

out, tasks, *folders = sys.argv[1:]
known, told = TaskManager(include_path=tasks), {}
for folder in folders:
    try:
        given = dict(model="onnxruntime", model_args="pretrained=" + folder, tasks=["next_line"], task_manager=known)
        rows = simple_evaluate(**given, log_samples=True, bootstrap_iters=0)["samples"]["next_line"]
        told[folder] = [[float(said[0][0]) for said in row["resps"]] for row in rows]
    except Exception as error:
        told[folder] = type(error).__name__ + ": " + str(error)
json.dump(told, open(out, "w"))
"""
"""What its command line calls, one folder after another: it takes its time to begin."""
EXACT = 1e-5
ROUNDED = 0.05
UNTOLD = {"fp8", "int4-awq", "int4-gptq", "int4-weights", "int8-weights", "int8-weights-block"}
"""Recipes whose Q/DQ is rewritten where ONNX Runtime is told nothing: docs/loaders.md, session options."""
OF_THE_CALL = {"int4-int8-prompt", "int8-dynamic"}
"""Recipes of ``ort`` whose inputs have one scale a call, and the harness makes other calls than we."""


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task of the embedded poems: which of four lines is the next."""
    folder = tmp_path_factory.mktemp("task")
    known = [poem for poem in poems() if len(poem.lines) > 1][:ASKED]
    rows = [
        {
            "line": poem.lines[0],
            # The right one stands in another place from row to row.
            "choices": [known[(number + place - number % 4) % ASKED].lines[1] for place in range(4)],
            "answer": number % 4,
        }
        for number, poem in enumerate(known)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (folder / "next_line.yaml").write_text(TASK.format(rows=folder / "rows.jsonl"), encoding="utf-8")
    return folder


def scored(folder: Path, task: Path, out: Path) -> tuple[float, list[list[float]], list[dict[str, Any]]]:
    """Accuracy, the log-likelihood of each choice, and the rows they are of."""
    command = [
        PYTHON, "-I", "-m", "lm_eval", "--model", "onnxruntime", "--model_args", f"pretrained={folder}", "--tasks",
        "next_line", "--include_path", task, "--output_path", out, "--log_samples",
    ]  # fmt: skip
    environment = {"PATH": os.environ["PATH"], "HF_HOME": str(out / "cache")} | OFFLINE
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (results,), (samples,) = (list(out.glob(f"*/{name}")) for name in ("results*.json", "samples*.jsonl"))
    rows = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    accuracy = json.loads(results.read_text())["results"]["next_line"]["acc,none"]
    return accuracy, [[float(said[0][0]) for said in row["resps"]] for row in rows], [row["doc"] for row in rows]


@torch.inference_mode()
def by_pytorch(session: TorchSession, rows: list[dict[str, Any]]) -> list[list[float]]:
    """The sum of the log-probabilities of each choice behind the line, without the prompt's special tokens."""
    encode = session.tokenizer.encode_plain
    found = []
    for row in rows:
        before = len(encode(row["line"]))
        scores = []
        for choice in row["choices"]:
            ids = torch.tensor([encode(row["line"] + choice)])
            positions = torch.arange(ids.shape[1])[None]
            logits = session.model(ids, torch.ones_like(ids), positions).logits[0, before - 1 : -1]
            told = logits.double().log_softmax(-1).gather(1, ids[0, before:, None])
            scores.append(float(told.sum()))
        found.append(scores)
    return found


@pytest.fixture(scope="module")
def reference() -> Iterator[TorchSession]:
    session = api.load_session("demo")
    assert isinstance(session, TorchSession)
    with session:
        yield session


@pytest.mark.parametrize("dialect", ["onnx", "ort"])
def test_scores_are_those_of_pytorch(
    dialect: str, task: Path, reference: TorchSession, demo_program: OnnxProgram, tmp_path: Path
) -> None:
    program = demo_program
    if dialect == "ort":
        program = api.export("demo", tmp_path / "program", dialect="ort", logits="all")
    accuracy, found, rows = scored(program.folder, task, tmp_path / "out")
    assert (accuracy, len(found)) == (1, ASKED)
    expected = by_pytorch(reference, rows)
    for told, known in zip(found, expected, strict=True):
        assert told == pytest.approx(known, rel=1e-5)
    if dialect == "onnx":
        # The control: a broken program is scored, and otherwise.
        broken = plant(demo_program, "half-split rotary", tmp_path / "broken")
        _, others, _ = scored(broken.folder, task, tmp_path / "of-broken")
        assert all(told != pytest.approx(known, rel=1e-2) for told, known in zip(others, expected, strict=True))


def scored_together(folders: list[Path], task: Path, work: Path) -> dict[str, list[list[float]] | str]:
    """The log-likelihoods of each folder's choices, or the error it ends in."""
    command = [PYTHON, "-I", "-c", HARNESS, work / "told.json", task, *folders]
    environment = {"PATH": os.environ["PATH"], "HF_HOME": str(work / "cache")} | OFFLINE
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((work / "told.json").read_text())


def by_loglikelihood(source: OnnxProgram | Path, encode: Callable[[str], list[int]], task: Path) -> list[list[float]]:
    """The same log-likelihoods, of what we load ourselves."""
    rows = [json.loads(line) for line in (task / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    found = []
    with api.load_session(source) as session:
        for row in rows:
            before = encode(row["line"])
            behind = [encode(row["line"] + choice)[len(before) :] for choice in row["choices"]]
            found.append([each.total for each in api.loglikelihood(session, [(before, ids) for ids in behind])])
    return found


def apart(found: list[list[float]], expected: list[list[float]]) -> float:
    """The largest difference, as a share of what is expected."""
    return float(np.abs(np.array(found) / np.array(expected) - 1).max())


def test_every_dialect_and_recipe(program_of: Callable[..., OnnxProgram], task: Path, tmp_path: Path) -> None:  # noqa: F811 - the fixture
    """A folder that is refused ends in an error, and no other; those are scored as our session scores them."""
    programs = {cell: program_of(*cell, logits="all") for cell in CELLS}
    last = program_of("onnx", None, logits="last")
    told = scored_together([program.folder for program in (*programs.values(), last)], task, tmp_path)
    assert str(told[str(last.folder)]).startswith("IndexError")
    assert not verdicts(subject_of(last))[LM_EVAL].runs
    for (dialect, recipe), program in programs.items():
        found, verdict = told[str(program.folder)], verdicts(subject_of(program))[LM_EVAL]
        assert verdict.runs == isinstance(found, list), (dialect, recipe, found)
        if not verdict.runs:
            continue
        with api.load_session(program) as session:
            encode = session.tokenizer.encode_plain
        error = apart(found, by_loglikelihood(program, encode, task))
        rounded = OF_THE_CALL if dialect == "ort" else UNTOLD
        assert error <= (ROUNDED if recipe in rounded else EXACT), (dialect, recipe, error)


def test_routed_experts(task: Path, tmp_path: Path) -> None:
    """GLM-4.5, whose golden folder has no tokenizer: it takes GLM-4's, and PyTorch the same ids."""
    texts = api.export(Golden("glm4_remote").folder, tmp_path / "texts")
    programs = [
        api.export(Golden("glm4_moe").folder, tmp_path / dialect, dialect=dialect, logits="all")
        for dialect in ("onnx", "portable", "ort")
    ]
    for program in programs:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(texts.folder / name, program.folder)
    told = scored_together([program.folder for program in programs], task, tmp_path)
    with api.load_session(texts) as session:
        expected = by_loglikelihood(Golden("glm4_moe").folder, session.tokenizer.encode_plain, task)
    for program in programs:
        assert verdicts(subject_of(program))[LM_EVAL].runs
        assert apart(told[str(program.folder)], expected) <= EXACT
        # The control: another line's answers are others.
        assert apart(told[str(program.folder)], expected[::-1]) > ROUNDED
