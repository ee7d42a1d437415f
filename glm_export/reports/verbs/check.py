"""What ``check`` found: a claim a case, where the error stands, what was predicted, and what both sides write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from glm_export.proof.check import CheckReport
from glm_export.proof.compare import PLANTED, REASONS, TOLERANCES, Reading
from glm_export.reports.records import Claim, Report, figure
from glm_export.reports.run import Run, Subject
from glm_export.reports.verbs.layers import controls_section, layers_section, layers_values
from glm_export.reports.verbs.positions import where_section
from glm_export.reports.verbs.predictions import outputs_section, predictions_section, texts_section
from glm_export.spec.batch_invariance import BatchInvariance

SHARE = (
    "Where nothing else is said, what is measured is the largest difference from the reference, as a share of the "
    "output's largest reference value, and so is what is allowed."
)
READ = (
    "What a planted defect reads: the same measure on the embedded model in float32, broken on purpose in a way people "
    "break it. A bound far below that tells a fault from rounding; one above it does not see that fault."
)
CASES = {
    "prefill": "a prompt, read at once",
    "chunk on a past": "the second part of a prompt, on the keys and values of the first",
    "decode": "one token on a past: the step by which a program writes",
    "padded batch": "prompts of different lengths, read together",
    "batch decode": "one token a row behind prompts of different lengths",
    "end of context": "a prompt at the last positions the model has",
}
"""What each of ``parity_cases`` is."""
LONG = "a call on a long past"


def check_report(
    report: CheckReport,
    subject: Subject,
    run: Run,
    *,
    planted: Mapping[str, Reading] | None = None,
) -> Report:
    """The findings of one ``check``.

    Args:
        report: from :func:`glm_export.proof.check.check` or ``check_engine``.
        subject: what was examined.
        run: on what.
        planted: what claims read where a defect is planted, by their names, in place of those in ``compare.PLANTED``.
    """
    parity = report.parity
    sections = [
        layers_section(layers_values(report.layers.to_json())) if report.layers else None,
        controls_section(report.controls) if report.controls else None,
        where_section(report.positions, parity.outputs[0].tolerance),
        outputs_section(parity.outputs),
        predictions_section(report.tokens),
        texts_section(report.greedy.texts if report.greedy else (), (parity.reference, parity.candidate)),
    ]
    claims = [_read_again(claim, planted or {}) for claim in _claims(report)]
    return Report(
        verb="check",
        subject=subject.name,
        sentence=_sentence(report, subject),
        passed=report.passed,
        about=(f"{SHARE} {_why(report)}", READ),
        claims=tuple(claims),
        sections=tuple(section for section in sections if section is not None),
        command=run.command,
        signature=subject.signature,
        environment=(*subject.facts, *run.facts()),
        hashes=subject.hashes,
        measured=report.to_json(),
    )


def _read_again(claim: Claim, planted: Mapping[str, Reading]) -> Claim:
    reading = planted.get(claim.name)
    return claim if reading is None else replace(claim, planted=reading.value, planted_what=reading.what)


def _sentence(report: CheckReport, subject: Subject) -> str:
    parity = report.parity
    with_weights = f", both with the weights of {report.recipe}" if report.recipe else ""
    sides = f"{parity.candidate} against {parity.reference} in {parity.dtype}{with_weights}"
    if report.passed:
        return f"The program says what {subject.against} says: {sides}."
    first = next((output for output in parity.outputs if not output.passed), None)
    where = f"; the first output beyond tolerance is {first.output} in case {first.case}" if first else ""
    lost = f" {report.not_finite}" if report.not_finite else ""
    return f"The program does not say what {subject.against} says: {sides}{where}.{lost}"


def _why(report: CheckReport) -> str:
    """The reason of what is allowed."""
    allowed = report.parity.outputs[0].tolerance
    if allowed == TOLERANCES[report.parity.dtype]:
        return f"Why {figure(allowed)} in {report.parity.dtype}: {REASONS[report.parity.dtype]}"
    return f"{figure(allowed)} is what {report.recipe} is allowed: activations may be rounded to either side of a tie."


# -- claims -----------------------------------------------------------------------------------------


def _claims(report: CheckReport) -> list[Claim]:
    parity = report.parity
    claims: list[Claim] = []
    for case in dict.fromkeys(output.case for output in parity.outputs):
        outputs = [output for output in parity.outputs if output.case == case]
        worst = max(outputs, key=lambda output: output.required_tolerance)
        reading = PLANTED["batch" if "batch" in case else "case"]
        claims.append(
            Claim(
                name=case,
                measured=worst.required_tolerance,
                bound=worst.tolerance,
                passed=all(output.passed for output in outputs),
                definition=f"{CASES.get(case, LONG).capitalize()}. The worst output is {worst.output}.",
                planted=reading.value,
                planted_what=reading.what,
            )
        )
    return [*claims, *_usual(report), _greedy_claim(report), *_company(report), *_others(report)]


def _usual(report: CheckReport) -> list[Claim]:
    if report.usual_bound is None:
        return []
    told = (
        "The median over cases of the smallest tolerance that passes: what a case needs where no activation lies on "
        "the border between two integers."
    )
    reading = PLANTED["usual"]
    return [
        Claim(
            name="usually",
            definition=told,
            measured=report.usual,
            bound=report.usual_bound,
            passed=report.usual <= report.usual_bound,
            planted=reading.value,
            planted_what=reading.what,
        )
    ]


def _greedy_claim(report: CheckReport) -> Claim:
    judged = report.parity.dtype == "float32" and report.recipe is None
    told = (
        "Greedy tokens both sides write alike, each with its own cache, place by place: prompts one after another and "
        "as a padded batch."
    )
    reading = PLANTED["greedy"]
    return Claim(
        name="greedy texts",
        said=f"{report.greedy_equal} of {report.greedy_total}",
        allowed="all of them" if judged else "not judged: rounding may part them",
        definition=told,
        measured=report.greedy_equal,
        bound=report.greedy_total if judged else None,
        at_least=True,
        passed=report.greedy_equal == report.greedy_total if judged else None,
        planted=reading.value,
        planted_what=reading.what,
    )


def _company(report: CheckReport) -> list[Claim]:
    company = report.company
    if company is None:
        return []
    reading = PLANTED["company"]
    exact, none = company.claimed is BatchInvariance.EXACT, company.claimed is BatchInvariance.NONE
    bound = 0.0 if exact else max(company.tolerance, company.rounding)
    told = (
        "Logits of rows decoded together, beside one that reads the model's worst outlier, and of each row alone: the "
        f"largest difference, as a share of a row's largest logit. Usually (median) {figure(company.usual)}. The "
        f"program claims to be {company.claimed.value}."
    )
    return [
        Claim(
            name="a row in company",
            definition=told,
            measured=company.difference,
            bound=None if none else bound,
            allowed="to the bit" if exact else "anything: it claims nothing" if none else None,
            passed=None if none else company.passed,
            planted=reading.value,
            planted_what=reading.what,
        )
    ]


def _others(report: CheckReport) -> list[Claim]:
    return [
        Claim(
            name=f"the same in {other.candidate}",
            measured=other.required_tolerance,
            bound=other.outputs[0].tolerance,
            passed=other.passed,
            definition=f"All cases, run by {other.candidate}.",
            planted=PLANTED["case"].value,
            planted_what=PLANTED["case"].what,
        )
        for other in report.others
    ]
