"""A row answers the same alone and in company, whatever its neighbours hold; where it does not, the session says so."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from glm_export import api
from glm_export.deployment.inspect import inspect_folder
from glm_export.inputs.prompts import Prompt
from glm_export.proof.company import CompanyReport, measure_company, outlier_token
from glm_export.sessions.onnxruntime.saturation import adds_in_16_bits
from glm_export.sessions.onnxruntime.session import OrtSession
from glm_export.spec.batch_invariance import BatchInvariance
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


EXACT, CLOSE, NONE = BatchInvariance.EXACT, BatchInvariance.CLOSE, BatchInvariance.NONE


@pytest.mark.parametrize(
    ("recipe", "claimed"),
    [
        (None, EXACT), ("int8-token", EXACT), ("int8-weights", CLOSE), ("int4-weights", CLOSE),
        # The control: all rows share one scale.
        ("int8-dynamic", NONE),
    ],
)  # fmt: skip
def test_a_row_in_company(recipe: str | None, claimed: BatchInvariance, checkpoint: Path, tmp_path: Path) -> None:
    """Prompts read alone, then decoded beside outliers: to the bit, but for last bits, or not at all."""
    program = api.export(checkpoint, tmp_path / "program", dialect="ort", recipe=recipe)
    assert (
        program.manifest["batch_invariance"] == inspect_folder(str(program.folder))["batch_invariance"] == claimed.value
    )
    with OrtSession(program, ["CPUExecutionProvider"]) as session:
        assert session.batch_invariance is claimed
        alone, in_company = decoded(session, []), decoded(session, NEIGHBOURS)
        apart = float(np.abs(in_company - alone).max() / np.abs(alone).max())
    assert {EXACT: apart == 0, CLOSE: apart <= 1e-5, NONE: apart > 0.01}[claimed]
    company = api.check(program, checkpoint).company
    assert company is not None
    assert (company.claimed, company.passed) == (claimed, True)
    # MatMulNBits rounds what it reads: without VNNI one value of int4-weights falls over a border here, by 8.8e-3, as
    # `passed` grants. There it is what is usual that is close.
    close = company.usual if recipe == "int4-weights" and adds_in_16_bits() else company.difference
    assert {EXACT: company.difference == 0, CLOSE: close <= 1e-5, NONE: company.difference > 0.01}[claimed]


def test_a_program_that_claims_too_much_fails_its_check(checkpoint: Path, tmp_path: Path) -> None:
    program = api.export(checkpoint, tmp_path / "program", dialect="ort", recipe="int8-dynamic")
    with OrtSession(program, ["CPUExecutionProvider"]) as session, api.load_session(checkpoint) as reference:
        # Whatever is granted to the rounding of activations: what is usual tells.
        found = measure_company(session, outlier_token(reference), 1e9)
        assert found is not None
        for claimed in (EXACT, CLOSE):
            assert not replace(found, claimed=claimed).passed
        assert "int8-token" in replace(found, claimed=CLOSE).advice


@pytest.mark.parametrize(
    ("difference", "usual", "rounding", "passed"),
    [
        (9e-6, 9e-6, 0.0, True), (2e-5, 9e-6, 0.0, False), (0.05, 9e-6, 0.08, True), (0.09, 9e-6, 0.08, False),
        (0.05, 2e-5, 0.08, False),
    ],
)  # fmt: skip
def test_a_value_on_a_border_is_rare_and_bounded(
    difference: float, usual: float, rounding: float, passed: bool
) -> None:
    report = CompanyReport(claimed=CLOSE, difference=difference, usual=usual, tolerance=1e-5, rounding=rounding)
    assert report.passed == passed
    assert not replace(report, claimed=EXACT).passed


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
