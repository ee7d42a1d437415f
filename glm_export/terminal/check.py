"""The verb ``check`` and its table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click
from rich.console import Console
from rich.markup import escape

from glm_export.proof.options import CheckOptions
from glm_export.spec.signature import OUTPUT_KINDS, output_kind
from glm_export.terminal.console import (
    MODEL,
    MODEL_PATH,
    RESULTS,
    adapter_option,
    flags,
    force_option,
    json_option,
    report_option,
    show_json,
    show_written,
    typed_line,
)
from glm_export.terminal.frame.saying import progress
from glm_export.terminal.frame.tables import Column, columns, show_table

if TYPE_CHECKING:  # these need torch; showing what they made does not
    from glm_export.proof.check import CheckReport
    from glm_export.proof.compare import OutputParity


@click.command()
@click.argument("program", type=MODEL_PATH)
@click.option(
    "--against",
    type=MODEL,
    required=True,
    help="The checkpoint it is of, or `demo`; an exported folder, or a saved run.",
)
@flags(CheckOptions, "reference_dtype", "tolerance", "corpus", "max_samples", "layer_by_layer")
@flags(CheckOptions, "control", "layers", "evidence", "save_run", panel="What is looked for, and kept")
@adapter_option
@json_option("Print the report as JSON.")
@report_option
@force_option("a report")
def check(
    program: Path,
    against: str,
    adapters: tuple[str, ...],
    as_json: bool,
    report: Path | None,
    force: bool,
    **options: Any,
) -> None:
    """Prove the exported PROGRAM, or an engine, equal to PyTorch; exit 1 where it is not.

    PROGRAM may also be an ONNX file that another tool exported, or a run that was saved; and what it is held to an
    exported folder, or a saved run.
    """
    from glm_export import api
    from glm_export.reports.files import asked_report

    asked = asked_report(report, typed_line(), force=force, sources=(program, against))
    reference = (
        api.open_checkpoint(against, api.open_exported(program).config.family, adapters) if adapters else against
    )
    with progress() as bars:
        found = api.check(program, reference, CheckOptions(**options), progress=bars)
    if asked is not None:
        from glm_export.reports.run import side_subject
        from glm_export.reports.verbs.check import check_report

        asked.write(check_report(found, side_subject(program, against), asked.stopwatch.run()))
    if as_json:
        show_json(found.to_json())
    else:
        show_parity(RESULTS, found)
        show_written(RESULTS, asked)
    if not found.passed:
        sys.exit(1)


def show_parity(console: Console, report: CheckReport) -> None:
    """One row for the logits, one for the whole cache and one for hidden states, per case."""
    parity = report.parity
    rounded = f", both with the weights of {report.recipe}" if report.recipe else ""
    title = f"{parity.candidate} against {parity.reference}, {parity.dtype}{rounded}; cache: its worst layer"
    rows = []
    for case in dict.fromkeys(output.case for output in parity.outputs):
        outputs = [output for output in parity.outputs if output.case == case]
        for kind in OUTPUT_KINDS:
            group = [output for output in outputs if output_kind(output.output) == kind]
            if group:
                rows.append(_parity_row(case, kind, group))
    numbers = columns("max abs", "max rel", "needed", "top-1", number=True)
    show_table(console, [*columns("case", "output"), *numbers, Column()], rows, title=title, grouped=True)
    first = next((o for o in parity.outputs if not o.passed), None)
    if first is not None:
        console.print(f"first output beyond tolerance: {first.output} in case {escape(first.case)}", soft_wrap=True)
    if report.not_finite is not None:
        console.print(report.not_finite, soft_wrap=True, markup=False)
    for line in report.not_asked:
        console.print(f"not asked: {line}", soft_wrap=True, markup=False)
    if report.greedy_total:
        console.print(f"greedy tokens equal: {report.greedy_equal:,} of {report.greedy_total:,}")
    console.print(
        f"smallest passing tolerance: {parity.required_tolerance:.1e} of an output's largest value "
        f"({parity.outputs[0].tolerance:.0e} allowed)",
        soft_wrap=True,
    )
    for line in _of_recipe(report):
        console.print(line, soft_wrap=True, markup=False)
    for line in _of_texts(report):
        console.print(line, soft_wrap=True, markup=False)
    if report.usual_bound is not None:
        console.print(f"usually, over cases: {report.usual:.1e} ({report.usual_bound:.0e} allowed)")
    if report.company is not None:
        company = report.company
        said = f"{company.difference:.1e} apart from itself alone, usually {company.usual:.1e}"
        console.print(f"a row in company: {said}; claimed {company.claimed.value}", soft_wrap=True)
        if not company.passed:
            console.print(company.advice, soft_wrap=True, markup=False)
    for other in report.others:
        console.print(f"{other.candidate}: smallest passing tolerance {other.required_tolerance:.1e}")
    for control in report.controls:
        noticed = "fails, as it must" if control.noticed else "NOT NOTICED: passing this check proves too little"
        console.print(
            f"control, {control.name}: {control.needed:.1e} in case {escape(control.case)}: {noticed}", soft_wrap=True
        )
    for line in report.layers.sentences() if report.layers is not None else ():
        console.print(line, soft_wrap=True, markup=False)
    console.print("[bold green]PASSED[/]" if report.passed else "[bold red]FAILED[/]")


def _of_recipe(report: CheckReport) -> list[str]:
    """What passing says of a program whose weights are rounded, and what it does not."""
    if report.recipe is None:
        return []
    bound = report.parity.outputs[0].tolerance
    usually = "" if report.usual_bound is None else f", and usually {report.usual_bound:.0e}"
    judged = (
        f"judged: that it computes what {report.recipe} says, both sides with the same rounded weights; activations "
        f"may be rounded by {bound:.0e} of an output's largest value{usually} (ADR 7), and greedy texts may differ"
    )
    return [
        judged,
        f"not judged: what {report.recipe} costs on text; that is `glm-export quality`",
    ]


def _of_texts(report: CheckReport) -> list[str]:
    """How far single predictions are apart, and where greedy texts part first."""
    lines = []
    if report.tokens:
        worst = max(report.tokens, key=lambda token: token.kl)
        lines.append(f"furthest prediction: KL {worst.kl:.1e} nats, position {worst.position} in case {worst.case}")
    texts = report.greedy.texts if report.greedy is not None else ()
    parted = min((text for text in texts if text.parted is not None), key=lambda text: text.parted or 0, default=None)
    if parted is not None and parted.reference_margin is not None:
        lines.append(
            f"greedy texts part first at token {(parted.parted or 0) + 1}, where the reference prefers its own by "
            f"{parted.reference_margin:.2g}{': rounding alone can turn that' if parted.near_tie else ''}"
        )
    return lines


def _parity_row(case: str, label: str, group: Sequence[OutputParity]) -> tuple[str, ...]:
    worst = max(group, key=lambda output: output.required_tolerance)
    passed = all(output.passed for output in group)
    return (
        escape(case), label, f"{worst.max_abs:.1e}", f"{worst.max_rel:.1e}", f"{worst.required_tolerance:.1e}",
        "" if worst.top1 is None else f"{worst.top1:.1%}", "[green]pass[/]" if passed else "[red]FAIL[/]",
    )  # fmt: skip
