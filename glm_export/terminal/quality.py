"""The verb ``quality`` and its tables."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click
from rich.console import Console
from rich.markup import escape

from glm_export.evaluation.options import QualityOptions
from glm_export.evaluation.statistics import PERCENTILES, Estimate, Flips, PredictionStatistics
from glm_export.terminal.console import (
    MODEL,
    MODEL_PATH,
    RESULTS,
    flags,
    force_option,
    json_option,
    report_option,
    show_json,
    show_written,
    typed_line,
)
from glm_export.terminal.frame.saying import progress
from glm_export.terminal.frame.tables import EXPLAINED, Column, columns, counted, show_table

if TYPE_CHECKING:
    from glm_export.evaluation.layer_costs import LayerCost
    from glm_export.evaluation.report import QualityReport

SHOWN_COSTS = 12
BAR = 24


@click.command()
@click.argument("program", type=MODEL_PATH)
@click.option("--against", type=MODEL, required=True, help="The checkpoint it was exported from, or `demo`.")
@flags(QualityOptions, "corpus", "max_samples", "sequence_length")
@flags(QualityOptions, "budget", multiple=True)
@flags(QualityOptions, "reference_dtype", "by_layer", "layer_by_layer")
@json_option("Print the report as JSON.")
@report_option
@force_option("a report")
def quality(program: Path, against: str, as_json: bool, report: Path | None, force: bool, **options: Any) -> None:
    """Measure on text how far PROGRAM is from the model it was made of.

    Perplexity, KL divergence, agreement of the likeliest tokens, greedy text, and tasks recalled exactly.
    """
    from glm_export import api
    from glm_export.reports.files import asked_report

    asked = asked_report(report, typed_line(), force=force, sources=(program, against))
    with progress() as bars:
        verdict = api.quality(program, against, QualityOptions(**options), progress=bars)
    if asked is not None:
        from glm_export.evaluation.budget import Budget
        from glm_export.reports.run import program_subject
        from glm_export.reports.verbs.quality import quality_report

        budget = Budget.parse(options["budget"]) if options["budget"] else None
        subject = program_subject(api.open_exported(program), against)
        asked.write(quality_report(verdict, budget, subject, asked.stopwatch.run()))
    if as_json:
        show_json(verdict.to_json())
    else:
        show_quality(RESULTS, verdict.report, str(program), verdict.broken)
        if verdict.costs is not None:
            show_costs(RESULTS, verdict.costs)
        show_written(RESULTS, asked)
    if verdict.broken:
        sys.exit(1)


def show_quality(console: Console, report: QualityReport, name: str, broken: Sequence[str] | None) -> None:
    """One row a figure, and the verdict where there is one.

    Args:
        console: where to.
        report: from :func:`glm_export.evaluation.measure.measure`.
        name: of the candidate.
        broken: what :meth:`glm_export.evaluation.budget.Budget.broken` says; None where no budget was given.
    """
    console.print(
        f"{escape(name)} against its reference: {counted(report.tokens, 'token')} of "
        f"{counted(report.samples, 'sample')}, corpus {escape(str(report.corpus['name']))}",
        soft_wrap=True,
    )
    show_table(console, EXPLAINED, [*_predicted(report), *_written(report)], header=False)
    _show_distributions(console, report.statistics)
    for sentence in broken or ():
        console.print(escape(sentence), soft_wrap=True)
    if broken is not None:
        console.print("[bold red]FAILED[/]" if broken else "[bold green]PASSED[/]")


def _predicted(report: QualityReport) -> list[tuple[str, str, str]]:
    found = report.statistics
    reference = f"the reference {_with_error(found.reference_perplexity, '.4g')}"
    ratio = f"times the reference's; correlation of logarithms {_correlation(found.perplexity_correlation)}"
    return [
        ("perplexity", _with_error(found.candidate_perplexity, ".4g"), reference),
        ("", _with_error(found.perplexity_ratio, ".4f"), ratio),
        ("KL", f"{report.worst_kl:.2e}", f"mean of the worst sample, number {report.worst_sample}"),
        ("top-1", _share(report.top1), f"same likeliest token{_error(found.same_top.scaled(100), '.3f', ' %')}"),
        ("top-5", _share(report.top5), "of the five likeliest, in any order"),
        ("flips", f"{found.flips.changed:,}", f"likeliest tokens that are others; {_directions(found.flips)}"),
    ]


def _show_distributions(console: Console, found: PredictionStatistics) -> None:
    """What ``llama-perplexity --kl-divergence`` prints, and in its order."""
    delta = found.delta_p.scaled(100)
    rows = [
        ("mean", _with_error(found.kl, ".2e"), _with_error(delta, "z.3f")),
        ("root mean square", "", _with_error(found.delta_p_rms.scaled(100), ".3f")),
    ]
    for name, (label, _) in PERCENTILES.items():
        kl, shift = (getattr(one, name) for one in (found.kl_distribution, found.delta_p_distribution))
        rows.append((label, f"{kl:.2e}", f"{100 * shift:z.3f}"))
    heads = [Column(style="dim"), *columns("KL, nats", "Δp, %", number=True)]
    show_table(console, heads, rows, title="token by token, as llama.cpp has it")


def _with_error(found: Estimate, form: str) -> str:
    return f"{found.value:{form}}{_error(found, form)}"


def _error(found: Estimate, form: str, unit: str = "") -> str:
    return "" if found.error is None else f" ± {found.error:{form.replace('.4g', '.2g')}}{unit}"


def _correlation(found: float | None) -> str:
    return "none" if found is None else f"{100 * found:.2f} %"


def _directions(found: Flips) -> str:
    return f"{found.right_to_wrong:,} right to wrong, {found.wrong_to_right:,} wrong to right"


def _written(report: QualityReport) -> list[tuple[str, str, str]]:
    rows = []
    if report.greedy_rows:
        step = report.greedy_first_difference
        parted = "" if step is None else f"; the others part at step {step:g} (median)"
        alike = f"{report.greedy_identical} of {report.greedy_rows}"
        rows.append(("greedy", alike, f"texts alike in {report.greedy_tokens} tokens{parted}"))
    if report.tasks:
        exact = f"{report.candidate_exact} of {report.tasks}"
        rows.append(("recall", exact, f"tasks done exactly; the reference {report.reference_exact}"))
        rows.append(("flips", f"{report.answer_flips.flips}", f"answers; {_directions(report.answer_flips)}"))
    return rows


def _share(value: float) -> str:
    """Rounded down: only what is whole is 100 %."""
    return f"{int(value * 10_000) / 100:.2f} %"


def show_costs(console: Console, costs: Sequence[LayerCost]) -> None:
    """The dearest layers, with bars as long as what they cost."""
    how = ", estimated" if any(cost.estimated for cost in costs) else ""
    rows = []
    most = max((cost.kl for cost in costs), default=0.0)
    for cost in costs[:SHOWN_COSTS]:
        bar = "█" * round(BAR * cost.kl / most) if 0 < most < float("inf") else ""
        rows.append((cost.weight.removesuffix(".weight"), f"{cost.kl:.2e}", f"[cyan]{bar}[/]" if bar else ""))
    if len(costs) > SHOWN_COSTS:
        rest = sum(cost.kl for cost in costs[SHOWN_COSTS:])
        rows.append((f"… {len(costs) - SHOWN_COSTS} more, together", f"{rest:.2e}", ""))
    heads = [Column("layer"), Column("KL, nats a token", number=True), Column(prose=True)]
    show_table(console, heads, rows, title=f"what each layer costs, quantized alone{how}")
