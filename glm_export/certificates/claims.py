"""What a check proves, claim by claim, as it is written into a folder's manifest and read from there again."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any

from glm_export.artifacts.manifest import RECORDED_PACKAGES, SIGNED_IN
from glm_export.engines import vendor
from glm_export.errors import CheckpointError, reason, shown
from glm_export.spec.batch_invariance import BatchInvariance
from glm_export.spec.signature import OUTPUT_KINDS, output_kind

if TYPE_CHECKING:  # a check needs torch, its words do not
    from glm_export.proof.check import CheckReport
    from glm_export.proof.company import CompanyReport
    from glm_export.proof.compare import ParityReport

RUNNING_PACKAGES = ("onnxruntime-gpu", "onnxruntime", vendor.TENSORRT, "tensorrt-rtx-cu13-libs", "polygraphy", "numpy")
"""What a check runs besides what shaped the program."""


class Result(Enum):
    """How a claim came out, and all of them together, in the words of in-toto's test results.

    A warning is a difference that the program allows itself: tokens that rounding turns, a batch it claims nothing of.
    """

    PASSED = "PASSED"
    WARNED = "WARNED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One thing that was tested. ``bound``: what ``measured`` was held to, None where it was only measured."""

    name: str
    result: Result
    measured: float
    bound: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What was proven of a folder.

    ``reference``, ``candidate``: who was compared, the first with the dtype it computed in. ``versions``: of what took
    part. ``machine``: processor and system it ran on. ``beside``: sha256 of files that lay in the folder and that
    glm-export did not write, by name. ``files_sha256``: of all files but the manifest, see
    :func:`glm_export.certificates.digests.root_digest`. ``signed_in``: files written with it.
    """

    result: Result
    created: str
    reference: str
    reference_dtype: str
    candidate: str
    claims: tuple[Claim, ...]
    versions: Mapping[str, str]
    machine: Mapping[str, str]
    beside: Mapping[str, str]
    files_sha256: str
    signed_in: tuple[str, ...] = ()

    def named(self, result: Result) -> list[str]:
        """Claims that came out so."""
        return [claim.name for claim in self.claims if claim.result is result]

    def to_json(self) -> dict[str, Any]:
        """Plain values, as a manifest holds them."""
        claims = [asdict(claim) | {"result": claim.result.value} for claim in self.claims]
        return asdict(self) | {"result": self.result.value, "claims": claims, SIGNED_IN: list(self.signed_in)}

    @classmethod
    def from_json(cls, values: Any) -> Proof:
        """What :meth:`to_json` wrote.

        Raises:
            CheckpointError: it did not write this.
        """
        try:
            claims = tuple(Claim(**claim | {"result": Result(claim["result"])}) for claim in values["claims"])
            proof = cls(
                **values | {"result": Result(values["result"]), "claims": claims, SIGNED_IN: tuple(values[SIGNED_IN])}
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the manifest's proof is none: {reason(error)}; run 'glm-export certify' again"
            ) from error
        _require_plain(proof)
        return proof


def _require_plain(proof: Proof) -> None:
    texts = (proof.created, proof.reference, proof.reference_dtype, proof.candidate, proof.files_sha256)
    maps = (proof.versions, proof.machine, proof.beside)
    told = [*texts, *proof.signed_in, *(claim.name for claim in proof.claims)]
    numbers = [value for claim in proof.claims for value in (claim.measured, claim.bound or 0.0)]
    plain = all(isinstance(text, str) for text in told) and all(isinstance(value, int | float) for value in numbers)
    if not plain or not all(isinstance(kept, dict) and all(map(_is_text, kept.values())) for kept in maps):
        raise CheckpointError(f"the manifest's proof is none: {shown(told)}; run 'glm-export certify' again")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def proof_of(
    report: CheckReport, reference_dtype: str, *, beside: Mapping[str, str], files_sha256: str, signed_in: Sequence[str]
) -> Proof:
    """What a check's report proves; its arguments besides are the fields of :class:`Proof`."""
    from glm_export.machine.facts import this_machine  # it imports torch, as the report did

    claims = tuple(claims_of(report))
    here = this_machine((*RECORDED_PACKAGES, *RUNNING_PACKAGES))
    return Proof(
        result=result_of(claims),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        reference=report.parity.reference,
        reference_dtype=reference_dtype,
        candidate=report.parity.candidate,
        claims=claims,
        versions={**here.packages, "python": here.python},
        # Of the system no more than its name: the folder may be published.
        machine={"processor": here.processor, "system": f"{platform.system()} {platform.machine()}"}
        | ({"gpu": here.gpu} if here.gpu else {}),
        beside=dict(beside),
        files_sha256=files_sha256,
        signed_in=tuple(signed_in),
    )


def result_of(claims: Sequence[Claim]) -> Result:
    """The worst of them."""
    found = {claim.result for claim in claims}
    return next((result for result in (Result.FAILED, Result.WARNED) if result in found), Result.PASSED)


def claims_of(report: CheckReport) -> Iterator[Claim]:
    """Every case's logits and cache, the usual of all, greedy tokens, rows in company: none fails if the check passed.

    Args:
        report: of :func:`glm_export.api.check`.
    """
    yield from _cases(report.parity, "")
    for other in report.others:
        yield from _cases(other, f"{other.candidate}, ")
    if report.usual_bound is not None:
        yield _bounded("usual tolerance over cases", report.usual, report.usual_bound)
    exact = report.parity.dtype == "float32" and report.recipe is None
    same = report.greedy_equal == report.greedy_total
    yield Claim(
        name=f"greedy tokens equal, of {report.greedy_total}",
        result=Result.PASSED if same else Result.FAILED if exact else Result.WARNED,
        measured=report.greedy_equal,
        bound=report.greedy_total if exact else None,
    )
    if report.company is not None:
        yield _company(report.company)


def _cases(parity: ParityReport, prefix: str) -> Iterator[Claim]:
    """The logits of each case, and the worst layer of its cache and of its hidden states."""
    for case in dict.fromkeys(output.case for output in parity.outputs):
        for kind in OUTPUT_KINDS:
            group = [o for o in parity.outputs if o.case == case and output_kind(o.output) == kind]
            if group:
                worst = max(group, key=lambda output: (not output.passed, output.required_tolerance))
                yield Claim(
                    name=f"{prefix}{case}: {kind}",
                    result=Result.PASSED if worst.passed else Result.FAILED,
                    measured=worst.required_tolerance,
                    bound=worst.tolerance,
                )


def _bounded(name: str, measured: float, bound: float) -> Claim:
    return Claim(
        name=name, result=Result.PASSED if measured <= bound else Result.FAILED, measured=measured, bound=bound
    )


def _company(company: CompanyReport) -> Claim:
    """A row beside others; of a program that claims nothing of it, what was found is a warning where it is much."""
    name = f"batch invariance, claimed {company.claimed.value}"
    bound = 0.0 if company.claimed is BatchInvariance.EXACT else max(company.tolerance, company.rounding)
    if company.claimed is BatchInvariance.NONE:
        close = company.difference <= bound
        result = Result.PASSED if close else Result.WARNED
        return Claim(name=name, result=result, measured=company.difference, bound=None)
    result = Result.PASSED if company.passed else Result.FAILED
    return Claim(name=name, result=result, measured=company.difference, bound=bound)
