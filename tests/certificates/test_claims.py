"""Claims say of a check what its verdict says, and each is found in a manifest again."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from glm_export.certificates.claims import Proof, Result, claims_of, proof_of, result_of
from glm_export.errors import CheckpointError
from glm_export.proof.check import CheckReport
from glm_export.proof.company import CompanyReport
from glm_export.spec.batch_invariance import BatchInvariance


def with_output(report: CheckReport, **changes: object) -> CheckReport:
    first, *others = report.parity.outputs
    return replace(report, parity=replace(report.parity, outputs=(replace(first, **changes), *others)))


def company(claimed: BatchInvariance, difference: float, *, rounding: float = 0.0) -> CompanyReport:
    return CompanyReport(
        claimed=claimed, difference=difference, usual=difference / 2, tolerance=1e-5, rounding=rounding
    )


def variants(report: CheckReport) -> dict[str, tuple[CheckReport, Result]]:
    rounded = replace(report, parity=replace(report.parity, dtype="float16"))
    fewer = report.greedy_total - 1
    exact, close, none = BatchInvariance
    return {
        "as it is": (report, Result.PASSED),
        "an output beyond": (with_output(report, passed=False, required_tolerance=1.0), Result.FAILED),
        "an output not finite": (
            with_output(report, passed=False, finite=False, required_tolerance=float("inf")),
            Result.FAILED,
        ),
        "another runner beyond": (
            replace(report, others=(with_output(report, passed=False).parity,)),
            Result.FAILED,
        ),
        "a token turned in float32": (replace(report, greedy_equal=fewer), Result.FAILED),
        "a token turned in float16": (replace(rounded, greedy_equal=fewer), Result.WARNED),
        "a token turned by a recipe": (replace(report, greedy_equal=fewer, recipe="int8"), Result.WARNED),
        "usually within": (replace(report, usual_bound=1.0), Result.PASSED),
        "usually beyond": (replace(report, usual_bound=0.0), Result.FAILED),
        "exact in company": (replace(report, company=company(exact, 0.0)), Result.PASSED),
        "not exact in company": (replace(report, company=company(exact, 1e-9)), Result.FAILED),
        "close in company": (replace(report, company=company(close, 1e-6)), Result.PASSED),
        "not close in company": (replace(report, company=company(close, 1e-3)), Result.FAILED),
        "claims nothing, far": (replace(report, company=company(none, 1e-3)), Result.WARNED),
        "claims nothing, close": (replace(report, company=company(none, 1e-6)), Result.PASSED),
        "alone": (replace(report, company=None), Result.PASSED),
    }


def test_claims_come_out_as_the_check_does(report: CheckReport) -> None:
    for name, (variant, expected) in variants(report).items():
        claims = list(claims_of(variant))
        assert result_of(claims) is expected, name
        assert (expected is not Result.FAILED) == variant.passed, name
        assert len({claim.name for claim in claims}) == len(claims), name


def test_every_output_is_part_of_a_claim(report: CheckReport) -> None:
    """Whichever output fails, a claim does."""
    for index, output in enumerate(report.parity.outputs):
        outputs = list(report.parity.outputs)
        outputs[index] = replace(output, passed=False)
        broken = replace(report, parity=replace(report.parity, outputs=tuple(outputs)))
        failed = [claim.name for claim in claims_of(broken) if claim.result is Result.FAILED]
        assert failed == [f"{output.case}: {'logits' if output.output == 'logits' else 'cache'}"]


def test_a_proof_is_read_as_it_was_written(report: CheckReport) -> None:
    proof = proof_of(report, "float32", beside={"README.md": "0" * 64}, files_sha256="1" * 64, signed_in=("model.sig",))
    assert Proof.from_json(json.loads(json.dumps(proof.to_json()))) == proof
    for key in proof.to_json():
        with pytest.raises(CheckpointError, match="glm-export certify"):
            Proof.from_json({name: value for name, value in proof.to_json().items() if name != key})
