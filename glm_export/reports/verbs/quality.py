"""What ``quality`` found: each limit of the budget, what was predicted and written, and what each layer costs."""

from __future__ import annotations

from collections.abc import Sequence

from glm_export.evaluation.budget import SHARES, Budget
from glm_export.evaluation.layer_costs import LayerCost
from glm_export.evaluation.report import QualityReport, QualityVerdict
from glm_export.evaluation.statistics import PERCENTILES, Flips, PredictionStatistics
from glm_export.reports.records import Bars, Claim, Column, Fact, Report, Section, Table, figure
from glm_export.reports.run import Run, Subject, corpus_line

MOST_BARS = 24
ABOUT = (
    "Both sides read the same text, each token given the true ones before it, and what they predict is compared token "
    "by token. A limit is judged where the budget names it; the others are measured."
)
COMPARED = (
    "The figures of llama.cpp's llama-perplexity --kl-divergence, Q the program and base the reference, with its "
    "formulas in float64 over the whole vocabulary; and flips (Dutta et al. 2024), the text being what is right."
)
NAMES = {"kl": "KL divergence", "perplexity": "perplexity", "top1": "top-1", "top5": "top-5", "recall": "recall"}
MEANINGS = {
    "kl": (
        "Mean over tokens of the Kullback-Leibler divergence of the program's prediction from the reference's; 0 nats "
        "is the same prediction."
    ),
    "perplexity": "The program's perplexity over the reference's; exp of the mean negative log-likelihood of the text.",
    "top1": "Share of tokens where both find the same one likeliest.",
    "top5": "How many of the reference's five likeliest tokens are among the program's, over five, in any order.",
    "recall": "Tasks the program does exactly over those the reference does.",
}
PLANTED = {"kl": 2.0, "perplexity": 4.8, "top1": 0.67, "recall": 0.06}
PLANTED_WHAT = "half-split rotary in the embedded model, on its poems"
"""Read with ``--corpus poems --max-samples 16``, and again by ``tests/proof/measures/test_planted.py``."""


def quality_report(verdict: QualityVerdict, budget: Budget | None, subject: Subject, run: Run) -> Report:
    """The findings of one ``quality``.

    Args:
        verdict: what was measured, and judged where there is a budget.
        budget: what may be lost.
        subject: what was examined.
        run: on what.
    """
    report = verdict.report
    passed = None if verdict.broken is None else not verdict.broken
    against = f"{subject.against}, on {report.tokens:,} tokens of {report.samples:,} samples of {report.corpus['name']}"
    sentence = f"KL {figure(report.kl)} nats a token from {against}."
    if verdict.broken is not None:
        kept = f"The program keeps to its budget: {sentence}"
        sentence = kept if passed else f"The program exceeds its budget: {'; '.join(verdict.broken)}."
    sections = [_predicted(report), _written(report), *([] if verdict.costs is None else [_costs(verdict.costs)])]
    return Report(
        verb="quality",
        subject=subject.name,
        sentence=sentence,
        passed=passed,
        about=(ABOUT,),
        claims=tuple(_claims(report, dict(budget.limits) if budget else {})),
        sections=tuple(sections),
        command=run.command,
        signature=subject.signature,
        environment=(*subject.facts, *_corpus(verdict), *run.facts()),
        hashes=subject.hashes,
        measured=verdict.to_json(),
    )


def _claims(report: QualityReport, limits: dict[str, float]) -> list[Claim]:
    claims = []
    for name, told in MEANINGS.items():
        found = getattr(report, "perplexity_ratio" if name == "perplexity" else name)
        limit, share = limits.get(name), name in SHARES
        if found is None:
            continue
        # As the budget judges: a figure that is no number keeps no limit.
        kept = None if limit is None else bool(found >= limit if share else found <= limit)
        claims.append(
            Claim(
                name=NAMES[name],
                definition=told,
                measured=found,
                bound=limit,
                at_least=share,
                passed=kept,
                allowed=None if limit is not None else "no limit given",
                planted=PLANTED.get(name),
                planted_what=PLANTED_WHAT if name in PLANTED else None,
            )
        )
    return claims


def _predicted(report: QualityReport) -> Section:
    rows = (
        (
            "perplexity of the reference",
            report.reference_perplexity,
            "exp of the mean negative log-likelihood of the text",
        ),
        ("perplexity of the program", report.candidate_perplexity, "the same"),
        ("KL, mean", report.kl, "nats a token"),
        ("KL, 99th percentile", report.kl_99, "of 100 tokens 99 are below it"),
        ("KL, largest", report.kl_largest, "of a single token"),
        ("KL, worst sample", report.worst_kl, f"mean of sample {report.worst_sample}"),
        ("top-1", report.top1, "share of tokens with the same likeliest one"),
        ("top-5", report.top5, "share of the five likeliest, in any order"),
        *_flips(report.statistics.flips, "likeliest tokens"),
    )
    kl = rows[2:6]
    table = Table(
        title="Figures of predictions",
        columns=(Column(name="figure", numeric=False), Column(name="value"), Column(name="what it is", numeric=False)),
        rows=rows,
    )
    bars = Bars(
        title="KL: the usual, and the worst",
        log=True,
        value_name="nats a token",
        definition="How far predictions are from the reference's, from the mean to the worst single token.",
        alt=f"{figure(report.kl)} nats on average, {figure(report.kl_largest)} for the worst token.",
        names=tuple(str(row[0]) for row in kl),
        values=tuple(float(row[1]) for row in kl),
        table=table,
    )
    items = (bars, _estimates(report.statistics), _distributions(report.statistics))
    return Section(key="predicted", title="What is predicted", text=(COMPARED,), items=items)


def _flips(flips: Flips, what: str) -> tuple[tuple[str, int, str], ...]:
    return (
        (f"flips: {what}, right to wrong", flips.right_to_wrong, "right with the reference alone"),
        (f"flips: {what}, wrong to right", flips.wrong_to_right, "right with the program alone"),
        (f"flips: {what}, wrong to wrong", flips.wrong_to_wrong, "another one, wrong as well"),
    )


def _estimates(found: PredictionStatistics) -> Table:
    rows = (
        ("Mean PPL(Q)", found.candidate_perplexity, "perplexity of the program"),
        ("Mean PPL(base)", found.reference_perplexity, "of the reference"),
        ("Mean ln(PPL(Q)/PPL(base))", found.log_perplexity_ratio, "mean difference of the negative log-likelihoods"),
        ("Mean PPL(Q)/PPL(base)", found.perplexity_ratio, "its exponential"),
        ("Mean PPL(Q)-PPL(base)", found.perplexity_difference, ""),
        ("Mean KLD", found.kl, "nats a token"),
        ("Mean Δp", found.delta_p.scaled(100), "the true token's probability less the reference's, per cent"),
        ("RMS Δp", found.delta_p_rms.scaled(100), "its root mean square, per cent"),
        ("Same top p", found.same_top.scaled(100), "tokens with the same likeliest one, per cent"),
    )
    correlation = found.perplexity_correlation
    percent = None if correlation is None else 100 * correlation
    told = "per cent; none where one side does not vary"
    return Table(
        title="As llama.cpp prints it",
        columns=(
            Column(name="figure", numeric=False),
            Column(name="value"),
            Column(name="±", definition="Standard error."),
            Column(name="what it is", numeric=False),
        ),
        rows=(
            *((name, one.value, one.error, what) for name, one, what in rows[:2]),
            ("Cor(ln(PPL(Q)), ln(PPL(base)))", percent, None, told),
            *((name, one.value, one.error, what) for name, one, what in rows[2:]),
        ),
    )


def _distributions(found: PredictionStatistics) -> Table:
    kl, delta = found.kl_distribution, found.delta_p_distribution
    return Table(
        title="Percentiles of tokens",
        definition="So many per cent of the tokens are below; between two tokens linearly.",
        columns=(
            Column(name="percentile", numeric=False),
            Column(name="KLD", definition="In nats."),
            Column(name="Δp", definition="In per cent."),
        ),
        rows=tuple((told, getattr(kl, name), 100 * getattr(delta, name)) for name, (told, _) in PERCENTILES.items()),
        folded=True,
    )


def _written(report: QualityReport) -> Section:
    step = report.greedy_first_difference
    facts = [
        Fact(
            name="texts alike",
            value=f"{report.greedy_identical} of {report.greedy_rows}",
            definition=f"Greedy texts of up to {report.greedy_tokens} tokens that come out the same, token for token.",
        ),
        Fact(
            name="the others part at",
            value="–" if step is None else f"step {step:g}",
            definition="Median over the texts that differ; the first token is step 1.",
        ),
        Fact(
            name="tasks done exactly",
            value=f"{report.candidate_exact} of {report.tasks}",
            definition=f"Completions whose lines are recalled exactly; the reference recalls {report.reference_exact}.",
        ),
    ]
    flips = report.answer_flips
    told = f"{flips.right_to_wrong} right to wrong, {flips.wrong_to_right} wrong to right"
    what = "Answers that only one side gives exactly; where they are as many either way, recall does not show them."
    facts.append(Fact(name="answers that flip", value=told, definition=what))
    return Section(key="written", title="What is written", facts=tuple(facts))


def _costs(costs: Sequence[LayerCost]) -> Section:
    rows = tuple((cost.weight.removesuffix(".weight"), cost.kl) for cost in costs)
    shown = costs[:MOST_BARS]
    left = f"; the dearest {len(shown)} of {len(costs)} are drawn" if len(shown) < len(costs) else ""
    bars = Bars(
        title=f"KL of each layer, quantized alone{', estimated' if any(cost.estimated for cost in costs) else ''}",
        log=True,
        value_name="nats a token",
        definition=f"One linear layer after another is quantized alone, the others stay in float{left}.",
        alt=f"The dearest is {rows[0][0]} with {figure(rows[0][1])} nats a token." if rows else "There is no layer.",
        names=tuple(cost.weight.removesuffix(".weight") for cost in shown),
        values=tuple(cost.kl for cost in shown),
        table=Table(
            title="The numbers behind it: every layer",
            folded=True,
            rows=rows,
            columns=(Column(name="layer", numeric=False), Column(name="KL", definition="In nats a token, mean.")),
        ),
    )
    told = "Where a budget is not kept, export with --budget leaves the dearest in float, the fewest that suffice."
    return Section(key="costs", title="What each layer costs", text=(told,), items=(bars,))


def _corpus(verdict: QualityVerdict) -> list[Fact]:
    return [Fact(name="corpus", value=corpus_line(verdict.corpus))]
