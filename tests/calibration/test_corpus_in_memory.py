"""Texts and rows a caller holds, in the place of a file: the same samples, and errors that name the row."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.checkpoints.checkpoint import Checkpoint
from glm_export.errors import InputError

TEXTS = ["床前明月光，疑是地上霜。举头望明月，低头思故乡。" * 20, "千山鸟飞绝，万径人踪灭。" * 20]
CHAT = {"messages": [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "明月" * 150}]}


def test_rows_are_those_of_a_file(tmp_path: Path, demo_checkpoint: Checkpoint) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in ({"text": TEXTS[0]}, CHAT, {"text": TEXTS[1]})]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    by_file = api.open_corpus(tmp_path / "rows.jsonl", demo_checkpoint)
    in_memory = api.open_corpus([TEXTS[0], CHAT, TEXTS[1]], demo_checkpoint)
    assert in_memory.samples == by_file.samples
    assert in_memory.sha256 == by_file.sha256 == hashlib.sha256((tmp_path / "rows.jsonl").read_bytes()).hexdigest()
    assert (in_memory.name, in_memory.origin) == ("given rows", "given by the caller")
    assert api.open_corpus(TEXTS, demo_checkpoint, max_samples=1).samples == by_file.samples[:1]


def test_they_calibrate_and_measure(tmp_path: Path, demo_checkpoint: Checkpoint, demo_program: OnnxProgram) -> None:
    ranges = api.calibrate(demo_checkpoint, tmp_path / "ranges", corpus=TEXTS)
    assert ranges.manifest["corpus"]["name"] == "given rows"
    quality = api.quality(demo_program, demo_checkpoint, corpus=[*TEXTS, CHAT])
    assert quality.report.kl < 1e-6
    report = api.check(demo_program, demo_checkpoint, corpus=TEXTS, max_samples=1)
    assert report.passed
    assert any("text" in output.case for output in report.parity.outputs)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([*TEXTS, 5], "row 3 of the corpus: a text or a row of fields is expected, found 5"),
        ([{"text": 5}], "row 1 of the corpus: .*text"),
        ([{"nothing": "known"}], "row 1 of the corpus: "),
        ([{"text": {1, 2}}], "row 1 of the corpus: "),
        ([], "given rows has 0 tokens, at least 256 are expected"),
        (["short"], "given rows has .* tokens, at least 256 are expected"),
    ],
)
def test_errors_name_the_row(rows: Any, said: str, demo_checkpoint: Checkpoint) -> None:
    with pytest.raises(InputError, match=said):
        api.open_corpus(rows, demo_checkpoint)
