"""Calibration, costs by layer and mixed precision for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from glm_export.calibration.corpus.corpus import Corpus
from glm_export.calibration.ranges import KEY, VALUE, Ranges, kv_name
from glm_export.checkpoints.checkpoint import Checkpoint
from glm_export.spec.dtypes import DTYPE_BYTES
from glm_export.terminal.console import size
from glm_export.terminal.quality import SHOWN_COSTS

SHOWN_OBSERVERS = ("min_max", "percentile", "entropy", "mse")


def show_calibration_plan(console: Console, checkpoint: Checkpoint, corpus: Corpus) -> None:
    """What will be read, and what it takes."""
    config = checkpoint.config
    parameters = sum(
        _count(shape)
        for rule in checkpoint.weight_map.rules
        if rule.target.startswith("layers.0.")
        for shape in rule.shapes
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
    for name in (*furthest[: SHOWN_COSTS // 2], kv_name(last, KEY), kv_name(last, VALUE)):
        table.add_row(name.removesuffix(".weight"), *(f"{ranges.threshold(name, key):.3g}" for key in SHOWN_OBSERVERS))
    console.print(table)
    total = sum(path.stat().st_size for path in ranges.folder.iterdir())
    console.print(f"[green]wrote[/] {escape(str(ranges.folder))} ({size(total)})", soft_wrap=True)
