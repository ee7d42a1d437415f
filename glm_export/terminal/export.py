"""The verbs ``export`` and ``recipes``: a plan, what was written, and what recipes there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click
from rich.console import Console
from rich.markup import escape

from glm_export.evaluation.options import BUDGET_SAMPLES, kept_costs
from glm_export.exporter.options import ExportOptions
from glm_export.terminal.console import (
    MESSAGES,
    MODEL,
    QUANTIZATION,
    RESULTS,
    adapter_option,
    family_option,
    flags,
    force_option,
    json_option,
    out_option,
    show_json,
    size,
)
from glm_export.terminal.frame.saying import progress
from glm_export.terminal.frame.tables import Column, counted, show_table

if TYPE_CHECKING:  # these need torch; showing what they made does not
    from glm_export.artifacts.program import OnnxProgram
    from glm_export.calibration.corpus.corpus import Corpus
    from glm_export.calibration.recipe import Recipe
    from glm_export.checkpoints.checkpoint import Checkpoint
    from glm_export.evaluation.layer_costs import MixedPrecision
    from glm_export.exporter.options import ResolvedOptions
    from glm_export.exporter.plan import ExportPlan


@click.command()
@click.argument("checkpoint", type=MODEL)
@out_option
@flags(ExportOptions, "dialect", "dtype", "logits", "max_length", "hidden_states")
@flags(
    ExportOptions, "recipe", "ranges", "block_size", "head_bits", "prefill_memory", "kv_cache_dtype", panel=QUANTIZATION
)
@click.option(
    "--budget",
    panel=QUANTIZATION,
    metavar="kl=NUMBER",
    help="With a recipe: leave the fewest layers in float that keep to it, e.g. kl=0.01. Goes on where it was stopped.",
)
@click.option(
    "--corpus", default="default", show_default=True, panel=QUANTIZATION, help="Text that a budget is measured on."
)
@click.option(
    "--max-samples",
    type=click.IntRange(1),
    metavar="INTEGER",
    default=BUDGET_SAMPLES,
    show_default=True,
    panel=QUANTIZATION,
    help="With --budget: rows of text that are read, evenly spaced.",
)
@family_option
@adapter_option
@json_option("Print what was written as JSON.")
@force_option("an exported folder")
def export(
    checkpoint: str,
    out: Path,
    force: bool,
    family: str | None,
    adapters: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Write an ONNX program for CHECKPOINT."""
    from glm_export import api
    from glm_export.artifacts.output_folder import require_writable
    from glm_export.exporter.options import open_ranges, resolve_options
    from glm_export.exporter.plan import plan_export

    budget, corpus, rows = (options.pop(name) for name in ("budget", "corpus", "max_samples"))
    require_writable(out, force=force)
    opened = api.open_checkpoint(checkpoint, family, adapters)
    chosen = ExportOptions(**options | {"ranges": open_ranges(options["ranges"])})
    target, mixed = resolve_options(opened, chosen), None
    if budget is not None:
        text = api.open_corpus(corpus, opened, max_samples=rows)
        with progress() as bars:
            mixed = api.exclude_layers(
                opened,
                target,
                budget,
                text,
                kept=kept_costs(out),
                progress=bars,
                on_plan=partial(show_budget_plan, MESSAGES),
            )
        show_mixed_precision(MESSAGES, mixed)
        chosen = replace(chosen, excluded=mixed.excluded)
        target = resolve_options(opened, chosen)
    show_plan(MESSAGES, opened, plan_export(opened, out, target.dtype, target.quantization, target.dialect.can), target)
    show_float16_risk(MESSAGES, target, measured=chosen.ranges is not None)
    with progress() as bars:
        program = api.export(opened, out, chosen, force=force, progress=bars)
    if budget is not None:
        kept_costs(out).unlink(missing_ok=True)
    show_written(MESSAGES, program)
    if as_json:
        from glm_export.deployment.inspect import inspect_folder

        show_json(inspect_folder(str(program.folder)) | ({} if mixed is None else {"budget": mixed.to_json()}))


@click.command()
@json_option()
def recipes(as_json: bool) -> None:
    """What `export --recipe` knows: how weights are stored and multiplied, and where that runs."""
    from glm_export.calibration import recipes as room
    from glm_export.exporter.options import dialects_of

    known = [room.load(name) for name in room.names()]
    if as_json:
        rows = [recipe.to_json() | {"dialects": dialects_of(recipe)} for recipe in known]
        show_json(rows)
    else:
        show_recipes(RESULTS, known)


def show_budget_plan(console: Console, read: Corpus, before: int) -> None:
    """What the costs of layers are measured on."""
    console.print(
        f"  budget  measured on {counted(len(read.samples), 'row')}, {counted(read.tokens, 'token')} of corpus "
        f"{escape(read.name)}; each layer is a pass over them, --max-samples takes more or fewer",
        soft_wrap=True,
    )
    if before:
        console.print(f"  budget  {counted(before, 'measurement')} of an earlier run are taken up", soft_wrap=True)


def show_plan(console: Console, checkpoint: Checkpoint, plan: ExportPlan, target: ResolvedOptions) -> None:
    """What will be read, written and needed."""
    console.print(
        f"[bold]{escape(checkpoint.config.family)}[/], {plan.parameters / 1e6:,.1f} M parameters, "
        f"{counted(len(checkpoint.files), 'weight file')}, {size(plan.source_bytes)} → "
        f"{target.dialect.name} {target.dtype}"
        f"{', ' + target.recipe.name if target.recipe else ''}",
        soft_wrap=True,
    )
    show_reading(console, checkpoint)
    console.print(
        f"  disk    {size(plan.output_bytes)} to write, {size(plan.free_bytes)} free\n"
        f"  memory  about {size(plan.memory_bytes)}; weights are streamed",
        soft_wrap=True,
    )


def show_reading(console: Console, checkpoint: Checkpoint) -> None:
    """Which weights are read, what lies beside them, and what was made of the folder."""
    beside = f"; beside it, unread: {', '.join(checkpoint.read.unread)}" if checkpoint.read.unread else ""
    for line in (f"weights by {checkpoint.read.told_by}{beside}", *checkpoint.notes):
        console.print(f"  reads   {escape(line)}", soft_wrap=True)


def show_written(console: Console, program: OnnxProgram) -> None:
    """Where the result is, and what to do with it."""
    total = sum(program.manifest["sizes"].values())
    console.print(f"[green]wrote[/] {escape(str(program.folder))} ({size(total)})", soft_wrap=True)


def show_mixed_precision(console: Console, mixed: MixedPrecision) -> None:
    """What was excluded, and what that brought."""
    from glm_export.terminal.quality import show_costs

    show_costs(console, mixed.costs)
    console.print(
        f"everything quantized: KL {mixed.kl_all:.2e}; with {counted(len(mixed.excluded), 'layer')} in float: "
        f"{mixed.kl:.2e}",
        soft_wrap=True,
    )
    for name, reason in mixed.excluded.items():
        console.print(f"  excluded {name.removesuffix('.weight')}: {reason}", soft_wrap=True)


def show_float16_risk(console: Console, target: ResolvedOptions, *, measured: bool) -> None:
    """A float16 program of a GLM can overflow; say so where nobody has looked, and what was found where one has."""
    if target.dtype != "float16":
        return
    if target.maxima:
        from glm_export.calibration.float16_range import summary

        console.print(f"  float16 {escape(summary(target.maxima))}; computed in float32", soft_wrap=True)
    elif not measured:
        console.print(
            "[yellow]Warning:[/] activations of GLMs are known to exceed float16's 65504; "
            "calibrate and give --ranges to keep those in float32, or take --dtype bfloat16",
            soft_wrap=True,
        )


def show_recipes(console: Console, known: Sequence[Recipe]) -> None:
    """One row a recipe: what it does, what an export with it needs, where it runs."""
    from glm_export.exporter.options import dialects_of

    heads = [Column("recipe"), *(Column(name, prose=True) for name in ("what", "needs", "in a batch", "dialects"))]
    rows = [
        (recipe.name, recipe.summary, recipe.needs, recipe.batch_invariance.value, " ".join(dialects_of(recipe)))
        for recipe in known
    ]
    show_table(console, heads, rows)
