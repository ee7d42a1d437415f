"""Calibration, costs by layer and mixed precision for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from glm_export.calibration.corpus import Corpus
from glm_export.calibration.overflow import summary
from glm_export.calibration.ranges import KEY, VALUE, Ranges, kept
from glm_export.checkpoint import Checkpoint
from glm_export.sensitivity import LayerCost, MixedPrecision
from glm_export.show import size
from glm_export.signature import DTYPE_BYTES
from glm_export.target import Target

SHOWN_COSTS = 12
BAR = 24
SHOWN_OBSERVERS = ("min_max", "percentile", "entropy", "mse")


def show_calibration_plan(console: Console, checkpoint: Checkpoint, corpus: Corpus) -> None:
    """What will be read, and what it takes."""
    config = checkpoint.config
    parameters = sum(
        _count(shape) for rule in checkpoint.rules.rules if rule.target.startswith("layers.0.") for shape in rule.shapes
    )
    head = config.vocab_size * config.hidden_size
    console.print(
        f"[bold]{escape(config.family)}[/], {config.num_layers} layers; corpus {escape(corpus.name)}: "
        f"{len(corpus.samples)} rows, {corpus.tokens:,} tokens ({escape(corpus.licence)})"
    )
    console.print(
        f"  disk    {size(2 * corpus.tokens * config.hidden_size * 2)} for hidden states while it runs\n"
        f"  memory  one layer in float32, {size(max(parameters, head) * DTYPE_BYTES['float32'])}, "
        "and what is measured of it"
    )


def _count(shape: Sequence[int]) -> int:
    count = 1
    for dim in shape:
        count *= dim
    return count


def show_ranges(console: Console, ranges: Ranges) -> None:
    """Where the ranges are, and the inputs that reach furthest."""
    table = Table(
        box=SIMPLE, title="inputs that reach furthest, and where each observer would clip", title_justify="left"
    )
    table.add_column("input of")
    for name in SHOWN_OBSERVERS:
        table.add_column(name.replace("_", "-"), justify="right")
    furthest = sorted(ranges.inputs, key=lambda name: -ranges.threshold(name, "min_max"))
    last = ranges.layers - 1
    for name in (*furthest[: SHOWN_COSTS // 2], kept(last, KEY), kept(last, VALUE)):
        table.add_row(name.removesuffix(".weight"), *(f"{ranges.threshold(name, key):.3g}" for key in SHOWN_OBSERVERS))
    console.print(table)
    total = sum(path.stat().st_size for path in ranges.folder.iterdir())
    console.print(f"[green]wrote[/] {escape(str(ranges.folder))} ({size(total)})", soft_wrap=True)


def show_costs(console: Console, costs: Sequence[LayerCost]) -> None:
    """The dearest layers, with bars as long as what they cost."""
    table = Table(box=SIMPLE, title="what each layer costs, quantized alone", title_justify="left")
    table.add_column("layer")
    table.add_column("KL, nats a token", justify="right")
    table.add_column("")
    most = max((cost.kl for cost in costs), default=0.0)
    for cost in costs[:SHOWN_COSTS]:
        bar = "█" * round(BAR * cost.kl / most) if 0 < most < float("inf") else ""
        table.add_row(cost.weight.removesuffix(".weight"), f"{cost.kl:.2e}", f"[cyan]{bar}[/]")
    if len(costs) > SHOWN_COSTS:
        rest = sum(cost.kl for cost in costs[SHOWN_COSTS:])
        table.add_row(f"… {len(costs) - SHOWN_COSTS} more, together", f"{rest:.2e}", "")
    console.print(table)


def show_mixed_precision(console: Console, mixed: MixedPrecision) -> None:
    """What was spared, and what that brought."""
    show_costs(console, mixed.costs)
    console.print(
        f"everything quantized: KL {mixed.kl_all:.2e}; with {len(mixed.spared)} layers in float: {mixed.kl:.2e}"
    )
    for name, reason in mixed.spared.items():
        console.print(f"  spared {name.removesuffix('.weight')}: {reason}")


def show_float16_risk(console: Console, target: Target, *, measured: bool) -> None:
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
