"""What reports say a planted defect reads is read again, on the embedded model."""

from __future__ import annotations

from pathlib import Path

import pytest

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.proof.check import CheckReport
from glm_export.proof.compare import PLANTED
from glm_export.reports.verbs import quality as of_quality
from tests.helpers.planted import plant

MILDEST, SEEN, TURNED = "float16 rounding of the tables", "padding is seen", "half-split rotary"


@pytest.fixture(scope="module")
def planted(demo_program: OnnxProgram, tmp_path_factory: pytest.TempPathFactory) -> dict[str, OnnxProgram]:
    root = tmp_path_factory.mktemp("planted")
    return {name: plant(demo_program, name, root / str(n)) for n, name in enumerate((MILDEST, SEEN, TURNED))}


@pytest.fixture(scope="module")
def found(planted: dict[str, OnnxProgram]) -> dict[str, CheckReport]:
    return {name: api.check(program, "demo") for name, program in planted.items()}


def test_readings_of_check(found: dict[str, CheckReport]) -> None:
    mildest, seen, turned = (found[name] for name in (MILDEST, SEEN, TURNED))
    assert seen.company is not None
    readings = {
        "case": mildest.parity.required_tolerance, "batch": seen.parity.required_tolerance, "usual": mildest.usual,
        "greedy": turned.greedy_equal, "company": seen.company.difference,
    }  # fmt: skip
    assert {name: reading.value for name, reading in PLANTED.items()} == pytest.approx(readings, rel=0.1)
    # What is said to be the mildest is.
    assert mildest.parity.required_tolerance < min(seen.parity.required_tolerance, turned.parity.required_tolerance)


def test_readings_of_quality(planted: dict[str, OnnxProgram], tmp_path: Path) -> None:
    report = api.quality(planted[TURNED], "demo", corpus="poems", max_samples=16).report
    readings = {
        "kl": report.kl, "perplexity": report.perplexity_ratio, "top1": report.top1, "recall": report.recall,
    }  # fmt: skip
    assert pytest.approx(readings, rel=0.1) == of_quality.PLANTED
