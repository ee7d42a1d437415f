"""A row answers the same alone and in company, whatever its neighbours hold; where it does not, the session says so."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from glm_export import api
from glm_export.inputs.prompts import Prompt
from glm_export.sessions.onnxruntime.session import OrtSession
from tests.helpers.golden_data import Golden

ROW = Prompt(ids=(5, 17, 40, 8, 9))
NEIGHBOURS = [Prompt(ids=(30, 31, 7)), Prompt(ids=(6, 6, 6, 6, 6, 6, 6, 6)), Prompt(ids=(11,))]
OUTLIER, FACTOR = 2, 600
"""A token, and how much larger one channel of it is than all others."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A golden model with one token that is an outlier."""
    folder = tmp_path_factory.mktemp("company") / "checkpoint"
    shutil.copytree(Golden("chatglm2").folder, folder)
    for path in folder.glob("pytorch_model-*.bin"):
        tensors = torch.load(path, weights_only=True)
        for name in [name for name in tensors if name.endswith("word_embeddings.weight")]:
            tensors[name][OUTLIER, 3] = FACTOR * tensors[name].abs().max()
            torch.save(tensors, path)
            return folder
    raise AssertionError("no embedding was found")


EXACT, CLOSE, APART = 0.0, 1e-5, 0.01


@pytest.mark.parametrize(
    ("recipe", "moved"),
    [
        (None, EXACT), ("int8-token", EXACT),
        # One row is multiplied by another kernel than several.
        ("int8-weights", CLOSE), ("int4-weights", CLOSE),
        # The control: all rows share one scale.
        ("int8-dynamic", APART),
    ],
)  # fmt: skip
def test_a_row_in_company(recipe: str | None, moved: float, checkpoint: Path, tmp_path: Path) -> None:
    """Prompts read alone, then decoded beside outliers: to the bit, to the last bits, or not at all."""
    program = api.export(checkpoint, tmp_path / "program", dialect="ort", recipe=recipe)
    with OrtSession(program, ["CPUExecutionProvider"]) as session:
        assert session.batch_invariant == (moved != APART)
        alone, in_company = decoded(session, []), decoded(session, NEIGHBOURS)
        apart = float(np.abs(in_company - alone).max() / np.abs(alone).max())
        assert apart > moved if moved == APART else apart <= moved


def decoded(session: OrtSession, neighbours: list[Prompt]) -> np.ndarray:
    """Logits of the first row after two steps, in which every other row is fed the outlier."""
    feeds = session.feeds([ROW])
    session.prefill(feeds)
    for neighbour in neighbours:
        feeds, _ = session.join(feeds, session.feeds([neighbour]))
    logits = []
    for token in (3, 4):
        feeds = feeds.next_step([token, *[OUTLIER] * len(neighbours)], 60)
        logits.append(session.decode(feeds)[0, -1].copy())
    return np.stack(logits)
