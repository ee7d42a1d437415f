"""The verb ``export``: its plan, and what was written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from glm_export.artifacts.program import OnnxProgram

if TYPE_CHECKING:  # these need torch; showing what they made does not
    from glm_export.checkpoints.checkpoint import Checkpoint
    from glm_export.exporter.options import ResolvedOptions
    from glm_export.exporter.plan import ExportPlan

from glm_export.calibration.float16_range import summary
from glm_export.checkpoints.checkpoint import Checkpoint
from glm_export.evaluation.layer_costs import MixedPrecision
from glm_export.exporter.options import ResolvedOptions
from glm_export.terminal.console import size
from glm_export.terminal.quality import show_costs


def show_plan(console: Console, checkpoint: Checkpoint, plan: ExportPlan, target: ResolvedOptions) -> None:
    """What will be read, written and needed."""
    console.print(
        f"[bold]{escape(checkpoint.config.family)}[/], {plan.parameters / 1e6:,.1f} M parameters, "
        f"{len(checkpoint.files)} weight files, {size(plan.source_bytes)} → {target.dialect.name} {target.dtype}"
        f"{', ' + target.recipe.name if target.recipe else ''}"
    )
    console.print(
        f"  disk    {size(plan.output_bytes)} to write, {size(plan.free_bytes)} free\n"
        f"  memory  about {size(plan.memory_bytes)}; weights are streamed"
    )


def show_written(console: Console, program: OnnxProgram) -> None:
    """Where the result is, and what to do with it."""
    total = sum(program.manifest["sizes"].values())
    console.print(f"[green]wrote[/] {escape(str(program.folder))} ({size(total)})", soft_wrap=True)


def show_mixed_precision(console: Console, mixed: MixedPrecision) -> None:
    """What was excluded, and what that brought."""
    show_costs(console, mixed.costs)
    console.print(
        f"everything quantized: KL {mixed.kl_all:.2e}; with {len(mixed.excluded)} layers in float: {mixed.kl:.2e}"
    )
    for name, reason in mixed.excluded.items():
        console.print(f"  excluded {name.removesuffix('.weight')}: {reason}")


def show_float16_risk(console: Console, target: ResolvedOptions, *, measured: bool) -> None:
    """A float16 program of a GLM can overflow; say so where nobody has looked, and what was found where one has."""
    if target.dtype != "float16":
        return
    if target.maxima:
        console.print(f"  float16 {escape(summary(target.maxima))}; computed in float32", soft_wrap=True)
    elif not measured:
        console.print(
            "[yellow]Warning:[/] activations of GLMs are known to exceed float16's 65504; "
            "calibrate and give --ranges to keep those in float32, or take --dtype bfloat16",
            soft_wrap=True,
        )
