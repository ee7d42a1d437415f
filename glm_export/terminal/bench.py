"""The verb ``bench`` and its table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click
from rich.console import Console
from rich.markup import escape

from glm_export.errors import InputError
from glm_export.performance.report import BenchOptions
from glm_export.terminal.console import (
    MODEL,
    RESULTS,
    flags,
    force_option,
    json_option,
    report_option,
    show_json,
    show_written,
    size,
    typed_line,
)
from glm_export.terminal.frame.saying import progress
from glm_export.terminal.frame.tables import EXPLAINED, Column, columns, counted, show_table

if TYPE_CHECKING:
    from glm_export.machine.facts import Machine
    from glm_export.performance.report import BenchReport
    from glm_export.performance.sweep import SweepReport


@click.command()
@click.argument("model", type=MODEL)
@flags(BenchOptions)
@click.option(
    "--sweep", is_flag=True, help="Measure MODEL's products alone instead, in every form its weights can have."
)
@json_option()
@report_option
@force_option("a report")
def bench(model: str, sweep: bool, as_json: bool, report: Path | None, force: bool, **options: Any) -> None:
    """Measure speed and memory of MODEL, an exported folder (ONNX Runtime), an engine or a checkpoint (PyTorch)."""
    if sweep:
        _sweep(model, BenchOptions(**options), as_json=as_json, report=report)
        return
    from glm_export.performance.bench import bench as run_bench
    from glm_export.reports.files import asked_report

    asked = asked_report(report, typed_line(), force=force, sources=(model,))
    with progress(still=True) as bars:
        found = run_bench(model, BenchOptions(**options), progress=bars)
    if asked is not None:
        from glm_export.performance.measure import open_model
        from glm_export.reports.run import subject_of
        from glm_export.reports.verbs.bench import bench_report

        asked.write(bench_report(found, subject_of(open_model(model), model), asked.stopwatch.run()))
    if as_json:
        show_json(found.to_json())
    else:
        show_bench(RESULTS, found)
        show_written(RESULTS, asked)


def _sweep(model: str, options: BenchOptions, *, as_json: bool, report: Path | None) -> None:
    if report is not None:
        raise InputError("--sweep prints a table, or --json, and writes no report; leave --report out")
    from glm_export.performance.measure import open_model
    from glm_export.performance.sweep import sweep

    with progress(still=True) as bars:
        found = sweep(model, open_model(model).config, threads=options.threads, rounds=options.rounds, progress=bars)
    if as_json:
        show_json(found.to_json())
    else:
        show_sweep(RESULTS, found)


def show_sweep(console: Console, report: SweepReport) -> None:
    """A row for each form, all products of a call together; and which form each product is fastest with."""
    from glm_export.performance.sweep import FORMS, ROWS

    console.print(
        f"{escape(report.model)}: the products of a call, weights alone; {counted(report.threads, 'thread')}, "
        f"median of {counted(report.rounds, 'round')}",
        soft_wrap=True,
    )
    rows = []
    for form in FORMS:
        one, eight, many = (report.total(form, tokens) for tokens in ROWS)
        nbytes = report.nbytes(form)
        figures = (nbytes / 1e9, 1e3 * one, nbytes / one / 1e9, 1e3 * eight, 1e3 * many)
        rows.append((form, *(f"{figure:,.2f}" for figure in figures), f"{ROWS[2] / many:,.0f}"))
    numbers = columns("GB", "1 token, ms", "GB/s", "8, ms", "256, ms", "tokens/s", number=True)
    show_table(console, [Column("weights as"), *numbers], rows)
    for tokens in ROWS:
        each = "; ".join(
            f"{', '.join(product.names)} [{product.rows_N} × {product.columns_K}]: {speed.form}"
            for product, speed in report.fastest(tokens)
        )
        console.print(f"fastest with {counted(tokens, 'token')}: {each}", soft_wrap=True, style="dim")
    _show_machine(console, report.machine)


def show_bench(console: Console, report: BenchReport) -> None:
    """Speed, the floor of a step, memory, and what it was measured on."""
    options, machine = report.options, report.machine
    written_as = " ".join(filter(None, (report.dialect, report.dtype)))
    title = (
        f"{escape(report.model)}: {report.runtime}, {written_as}; {counted(options.threads or 0, 'thread')}, "
        f"batch {options.batch}, {'median' if options.rounds > 1 else 'result'} of {counted(options.rounds, 'round')}"
    )
    console.print(title, soft_wrap=True)
    show_table(console, EXPLAINED, [*_speed(report), *_memory(report)], header=False)
    _show_machine(console, machine)


def _show_machine(console: Console, machine: Machine) -> None:
    memory = "" if machine.memory_bytes is None else f", {size(machine.memory_bytes)} of memory"
    packages = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
    console.print(
        f"{escape(machine.processor)}, {counted(machine.cores, 'core')}{memory}; "
        f"{escape(machine.gpu) if machine.gpu else 'no GPU'}\n"
        f"{escape(machine.system)}; Python {machine.python}, {packages}",
        style="dim",
        soft_wrap=True,
    )


def _speed(report: BenchReport) -> list[tuple[str, str, str]]:
    options = report.options
    rows = [
        ("prefill", f"{report.prefill_tokens_s:,.1f} tokens/s", f"a prompt of {options.prompt_tokens}"),
        ("first token", f"{1000 * report.first_token_s:,.1f} ms", "that prompt read, a token chosen"),
        (
            "decode",
            f"{report.decode_tokens_s:,.1f} tokens/s",
            f"{counted(options.new_tokens, 'token')} after {options.context}",
        ),
        (
            "a step",
            f"{report.step_p50_ms:.2f} ms",
            f"p50; p90 {report.step_p90_ms:.2f}, p99 {report.step_p99_ms:.2f}",
        ),
    ]
    if report.floor_ms is None or report.share_of_floor is None or report.bandwidth_bytes_s is None:
        return [*rows, ("floor of a step", "unknown", "PyTorch here cannot read that memory")]
    read = size(report.step_weight_bytes + report.step_cache_bytes)
    bandwidth = f"{size(report.bandwidth_bytes_s)}/s"
    return [
        *rows,
        ("floor of a step", f"{report.floor_ms:.2f} ms", f"{read} to read at {bandwidth}"),
        ("of the floor", f"{report.share_of_floor:.0%}", "100 %: nothing but reading memory"),
    ]


def _memory(report: BenchReport) -> list[tuple[str, str, str]]:
    rows = [("load", f"{report.load_s:.2f} s", "")]
    if report.peak_anonymous_bytes is None or report.peak_file_bytes is None:
        return [*rows, ("peak memory", "unknown", "this system does not tell anonymous from file-backed")]
    if report.device_memory_bytes is not None:
        rows.append(("device memory", size(report.device_memory_bytes), "in use on the GPU, by all"))
    libraries = report.libraries_anonymous_bytes
    before = "" if libraries is None else f"{size(libraries)} before the model"
    return [
        *rows,
        ("peak memory", size(report.peak_anonymous_bytes), f"anonymous; {before}".removesuffix("; ")),
        ("", size(report.peak_file_bytes), "file-backed"),
    ]
