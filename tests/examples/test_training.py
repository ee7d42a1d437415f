"""The training scripts run, and write folders in the published layouts; one epoch, to see that they still do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from glm_export import api

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    ("script", "family", "embedded"),
    [("train_poems.py", "chatglm2", "demo"), ("train_infilling.py", "glm_infilling", "demo-glm")],
)
def test_training_writes_what_is_embedded(script: str, family: str, embedded: str, tmp_path: Path) -> None:
    """The same files, tensors and sizes as the shipped checkpoint; only the numbers are those of one epoch."""
    out = tmp_path / "checkpoint"
    command = [sys.executable, str(EXAMPLES / script), "--out", str(out), "--epochs", "1"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=EXAMPLES.parent)
    assert result.returncode == 0, result.stderr
    made, shipped = api.open_checkpoint(out), api.open_checkpoint(embedded)
    made.audit()
    assert made.config == shipped.config
    assert made.config.family == family
    assert {path.name for path in out.iterdir()} == {path.name for path in shipped.folder.iterdir()}
    for name in shipped.weight_of:
        assert made.tensor(name).shape == shipped.tensor(name).shape
    text = "床前明月光"
    with api.load_session(made) as one, api.load_session(shipped) as other:
        assert one.tokenizer.encode(text) == other.tokenizer.encode(text)
