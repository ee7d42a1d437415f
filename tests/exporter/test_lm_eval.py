"""The exported folder in EleutherAI's lm-evaluation-harness, as it is and offline: its scores are those of PyTorch.

It runs in an environment of its own, with its own ONNX Runtime and transformers, and nothing of this package.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.embedded import poems
from glm_export.sessions.torch import TorchSession
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
