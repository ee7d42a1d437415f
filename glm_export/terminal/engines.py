"""The verbs that know engines, ``build`` and ``doctor``: a plan, what became of it, and the doctor's findings."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click
from rich.console import Console
from rich.markup import escape

from glm_export.artifacts.engine import BUILD_LOG
from glm_export.deployment.request import BuildRequest, CheckpointKeywords, ImplicitInt8
from glm_export.deployment.source import DTYPE
from glm_export.engines.options import UNPROVEN_IN_PLACE, BuildOptions
from glm_export.engines.vendor import RUNTIMES
from glm_export.errors import InputError
from glm_export.exporter.options import ExportOptions
from glm_export.spec.option import flag
from glm_export.spec.signature import INPUT_IDS, Cache, past_names
from glm_export.terminal.console import (
    CHECKPOINT_PANEL,
    MESSAGES,
    MODEL,
    MODEL_PATH,
    OUTPUT,
    RESULTS,
    family_option,
    flags,
    json_option,
    out_option,
    picked,
    show_json,
    size,
)
from glm_export.terminal.frame.saying import progress
from glm_export.terminal.frame.tables import Column, columns, counted, show_facts_grid, show_table

if TYPE_CHECKING:
    from glm_export.artifacts.engine import Engine
    from glm_export.deployment.doctor import Diagnosis
    from glm_export.engines.builder import BuildPlan

IMPLICIT, BUILDER = "Implicit INT8", "How it is built"
GIGABYTE, TERABYTE = 10**9, 10**12
WORTH_SHOWING = (
    "KV_CACHE_UPDATE", "ROTARY_EMBEDDING", "ATTENTION_INPUT", "NORMALIZATION", "MATRIX_MULTIPLY", "QUANTIZE",
    "DEQUANTIZE",
)  # fmt: skip
LISTED = 6


def _bytes(ctx: click.Context, param: click.Parameter, gigabytes: float | None) -> int | None:  # noqa: ARG001 - click's
    if gigabytes is not None and not math.isfinite(gigabytes):
        raise InputError(f"--workspace is a number of gigabytes, found {gigabytes}")
    return None if gigabytes is None else int(gigabytes * GIGABYTE)


@click.command()
@click.argument("source", type=MODEL)
@out_option
@flags(BuildRequest, "runtime", "max_batch", "max_context", "prefill_tokens", "prefill_batch")
@click.option("--explain", is_flag=True, help="Build nothing; print how others repeat the build and compare engines.")
@flags(
    ExportOptions,
    "dtype",
    before="For a checkpoint: ",
    after=f" Default: {DTYPE}.",
    default=None,
    panel=CHECKPOINT_PANEL,
)
@flags(ExportOptions, "recipe", "ranges", before="For a checkpoint: ", panel=CHECKPOINT_PANEL)
@family_option
@flags(BuildRequest, "implicit_int8", is_flag=True, panel=IMPLICIT)
@flags(ImplicitInt8, "algorithm", after=f" Default: {ImplicitInt8().algorithm}.", default=None, panel=IMPLICIT)
@flags(ImplicitInt8, "cache", "corpus", default=None, panel=IMPLICIT)
@flags(
    BuildOptions, "workspace_bytes", before="Gigabytes of ", type=float, callback=_bytes, metavar="FLOAT", panel=BUILDER
)
@flags(BuildOptions, "optimization_level", "version_compatible", "hardware_compatible", panel=BUILDER)
@flags(BuildOptions, "refittable", "stripped", "weight_streaming", "compute_capabilities", panel=BUILDER)
@flags(BuildRequest, "timing_cache", panel=BUILDER)
@json_option("Print what was written as JSON; with --explain the script.")
@flags(BuildRequest, "force", panel=OUTPUT)
def build(source: str, out: Path, implicit_int8: bool, explain: bool, as_json: bool, **options: Any) -> None:
    """Build a TensorRT engine of SOURCE, an exported folder or a checkpoint.

    TensorRT-RTX builds without a GPU; engines run where there is one.
    """
    from glm_export.deployment.build import build_requested, explain_requested

    measured = {name: value for name, value in picked(ImplicitInt8, options).items() if value}
    if measured and not implicit_int8:
        given = ", ".join(flag(ImplicitInt8, name) for name in measured)
        raise click.UsageError(f"{given} belongs to --implicit-int8; give that, too, or leave it out")
    request = BuildRequest(
        source=source,
        out=out,
        export=CheckpointKeywords(
            dtype=options.pop("dtype"), recipe=options.pop("recipe"), ranges=options.pop("ranges")
        ),
        options=BuildOptions(**picked(BuildOptions, options)),
        implicit_int8=ImplicitInt8(**measured) if implicit_int8 else None,
        **options,
    )
    if explain:
        plan, script = explain_requested(request)
        show_build_plan(MESSAGES, plan)
        if as_json:
            show_json({"runtime": plan.runtime, "version": plan.version, "script": script})
        else:
            click.echo(script, nl=False)
        return
    with progress() as bars:
        engine = build_requested(request, progress=bars, on_plan=lambda plan: show_build_plan(MESSAGES, plan))
    show_built(MESSAGES, engine)
    if as_json:
        from glm_export.deployment.inspect import inspect_folder

        show_json(inspect_folder(str(engine.folder)))


@click.command()
@click.argument("folders", nargs=-1, type=MODEL_PATH)
@click.option("--thorough", is_flag=True, help="Read every file whole, to see that it is undamaged.")
@json_option()
def doctor(folders: tuple[Path, ...], thorough: bool, as_json: bool) -> None:
    """Show what this machine has, and which FOLDERS it can run; exit 3 where one cannot."""
    from glm_export.deployment.doctor import diagnose

    with progress() as bars:
        diagnosis = diagnose(list(folders), thorough=thorough, progress=bars)
    if as_json:
        show_json(diagnosis.to_json())
    else:
        show_diagnosis(RESULTS, diagnosis)
    if not diagnosis.every_folder_runs:
        sys.exit(3)


def show_build_plan(console: Console, plan: BuildPlan) -> None:
    """Program, profiles and memory, before the work begins."""
    program, memory = plan.program, plan.memory
    recipe = f", {program.recipe}" if program.recipe else ""
    console.print(
        f"[bold]{escape(program.config.family)}[/], {program.dialect} {program.dtype}{recipe} → "
        f"{plan.runtime} {plan.version}"
    )
    rows = []
    cache = past_names(0)[0]
    kept = "cache" if program.signature.cache is Cache.STATIC else "past"
    for profile in plan.profiles:
        corners = zip(profile.shapes[INPUT_IDS], profile.shapes[cache], strict=True)
        rows.append((profile.name, *(f"{ids[0]} x {ids[1]}, {kept} {past[2]}" for ids, past in corners)))
    show_table(console, [Column("profile"), *columns("least", "usual", "most", number=True)], rows)
    workspace = "up to the device's" if memory.workspace is None else size(memory.workspace)
    console.print(
        f"  device  {size(memory.weights)} weights, {size(memory.cache_row)} keys and values a row, "
        f"{size(memory.cache)} for {plan.limits.max_batch}; workspace {workspace}\n"
        f"  host    about {size(memory.host)} while building, {size(memory.free_disk)} disk free",
        soft_wrap=True,
    )
    show_column_cost(console, plan)
    show_unproven(console, plan)


def show_column_cost(console: Console, plan: BuildPlan) -> None:
    """What the length of a static cache costs: attention reads all of it, whatever its rows hold."""
    if plan.program.signature.cache is Cache.STATIC:
        count = plan.memory.bytes_of_columns(plan.limits.max_context)
        console.print(
            f"  cache   every decode step reads each column, filled or not: {size(count)} for 1,000 columns of a row, "
            f"{count / TERABYTE * 1e6:.3g} us on a GPU of 1 TB/s",
            soft_wrap=True,
        )


def show_unproven(console: Console, plan: BuildPlan) -> None:
    """Options nobody has seen at work beside a cache that is updated in place."""
    chosen = [flag(BuildOptions, name) for name in UNPROVEN_IN_PLACE if getattr(plan.options, name)]
    if chosen and plan.program.signature.cache is Cache.STATIC:
        console.print(
            f"[yellow]Warning:[/] {', '.join(chosen)} beside a cache updated in place is unproven: no such engine has "
            "been loaded yet; 'glm-export check' it before use",
            soft_wrap=True,
        )


def show_built(console: Console, engine: Engine) -> None:
    """What became of it."""
    manifest = engine.manifest
    memory, summary = manifest["memory"], manifest["engine_layers"]
    console.print(
        f"built in {manifest['seconds']:.1f} s; weights {size(memory['weights'])} ({memory['weight_ratio']:.2f} of the "
        "program's), activations "
        + ", ".join(f"{name} {size(count)}" for name, count in memory["activations"].items()),
        soft_wrap=True,
    )
    network = manifest["network_layers"]
    listed = ", ".join(f"{network[kind]:,} {kind}" for kind in WORTH_SHOWING if kind in network)
    console.print(f"  network {listed}", soft_wrap=True)
    kinds = ", ".join(f"{count} {kind}" for kind, count in summary["kinds"].items())
    console.print(f"  engine  {counted(summary['layers'], 'layer')} ({summary['source']}): {kinds}", soft_wrap=True)
    if manifest["not_inspected"]:
        console.print(f"  not inspected: {escape(manifest['not_inspected'])}", soft_wrap=True)
    for name, precisions in summary["products"].items():
        listed = ", ".join(f"{count:,} {precision}" for precision, count in precisions.items())
        weights = ", ".join(f"{size(count)} {dtype}" for dtype, count in summary["weights"][name].items())
        console.print(f"  {name:8}products: {listed}; weights: {weights or 'not told'}", soft_wrap=True)
    for warning in _warnings(manifest):
        console.print(f"[yellow]Warning:[/] {escape(warning)}", soft_wrap=True)
    total = sum(manifest["sizes"].values())
    console.print(
        f"[green]wrote[/] {escape(str(engine.folder))} ({size(total)}; {BUILD_LOG} has every word)", soft_wrap=True
    )


def _warnings(manifest: dict[str, Any]) -> Iterator[str]:
    """What became of a program and was not meant."""
    from glm_export.engines.builder import MOST_WEIGHT_RATIO, has_excess_weights

    memory, summary = manifest["memory"], manifest["engine_layers"]
    if summary["not_integer"]:
        yield f"quantized in the program, computed in float: {_listed(summary['not_integer'])}"
    if summary["made_float"]:
        yield f"weights of integers in the program, of floats in the engine: {_listed(summary['made_float'])}"
    if has_excess_weights(memory):
        yield (
            f"the engine's weights are {memory['weight_ratio']:.2f} times the program's, at most {MOST_WEIGHT_RATIO} "
            "were expected: some were made float or lie there twice; see the weights of each profile above"
        )
    if manifest["attention_decomposed"]:
        yield "attention has no fused kernel for this dtype and head size; it is slower"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{', '.join(names[:LISTED])}{more}"


def show_diagnosis(console: Console, diagnosis: Diagnosis) -> None:
    """The machine, then a row a folder."""
    machine = diagnosis.machine
    rows = []
    gpus = [
        f"{gpu.name}, compute capability {gpu.compute_capability}, {size(gpu.memory_bytes)}" for gpu in machine.gpus
    ]
    rows.append(("gpu", escape("\n".join(gpus) or "none found")))
    rows.append(("driver", escape(diagnosis.driver or "none found")))
    rows += [(name, escape(machine.versions.get(name) or machine.missing[name])) for name in RUNTIMES]
    for extra, why in diagnosis.lacking.items():
        if why not in machine.missing.values():
            rows.append((extra, escape(why)))
    rows.append(("providers", escape(", ".join(diagnosis.providers))))
    rows.append(("python", f"{diagnosis.python}, {machine.system}"))
    for name, found in diagnosis.packages.items():
        if found is not None:
            rows.append((name, escape(found)))
    show_facts_grid(console, rows)
    for verdict in diagnosis.folders:
        mark = "[green]runs[/]" if verdict.runs else "[red]does not run[/]"
        where = f", {verdict.runs_on}" if verdict.runs_on else ""
        console.print(f"\n{escape(verdict.folder)}: {mark} ({verdict.kind}{where})", soft_wrap=True)
        for obstacle in verdict.obstacles:
            console.print(f"  - {escape(obstacle)}", soft_wrap=True)
