"""A folder that an earlier version signed is verified: see ``golden/README.md``."""

from __future__ import annotations

import pytest

from glm_export import verify
from glm_export.certificates.claims import Result
from glm_export.certificates.options import Trust
from tests.helpers.golden_data import GOLDEN

BEFORE = GOLDEN / "written_before"
FOLDER, CHECKPOINT = BEFORE / "signed", BEFORE / "checkpoint"
KEY, ROOT = BEFORE / "signed.pub", BEFORE / "signed.root.crt"


def test_by_its_key_and_the_check_comes_out_the_same() -> None:
    found = verify(FOLDER, trust=Trust(key=KEY), against=CHECKPOINT)
    assert found.holds, (found.problems, found.differences)
    assert found.proof is not None
    assert found.again is found.proof.result is Result.PASSED
    assert len(found.proof.claims) == 14
    assert found.statements.startswith("test result and provenance")


@pytest.mark.parametrize("known", [True, False], ids=["its root", "no root of its"])
def test_by_a_certificate_of_a_few_weeks(known: bool) -> None:
    """Which has ended long ago: what counts is that it was in force."""
    trust = Trust(chain=(ROOT,)) if known else Trust(key=KEY)
    found = verify(FOLDER, trust=trust, signature=BEFORE / "signed.certificate.sig")
    assert found.holds == known
    assert found.verified == known
