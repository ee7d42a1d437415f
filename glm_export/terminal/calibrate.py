"""The verb ``calibrate``: its plan, and the inputs that reach furthest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click
from rich.console import Console
from rich.markup import escape

from glm_export.calibration.options import CalibrationOptions
from glm_export.cluster.options import WorkerOptions
from glm_export.spec.dtypes import DTYPE_BYTES
from glm_export.terminal.console import (
    CLUSTER,
    MESSAGES,
    MODEL,
    adapter_option,
    family_option,
    flags,
    force_option,
    json_option,
    out_option,
    picked,
    report_option,
    show_json,
    show_written,
    size,
    typed_line,
)
from glm_export.terminal.frame.saying import progress
from glm_export.terminal.frame.tables import Column, columns, counted, show_table

if TYPE_CHECKING:  # these need torch; showing what they made does not
    from glm_export.calibration.corpus.corpus import Corpus
    from glm_export.calibration.layerwise.shards import Spread
    from glm_export.calibration.ranges import Ranges
    from glm_export.checkpoints.checkpoint import Checkpoint

SHOWN_OBSERVERS = ("min_max", "percentile", "entropy", "mse")
SHOWN_INPUTS = 6


@click.command()
@click.argument("checkpoint", type=MODEL)
@flags(CalibrationOptions, "corpus")
@out_option
@flags(CalibrationOptions, "recipe", "block_size", "sequence_length", "max_samples", "device")
@flags(WorkerOptions, panel=CLUSTER)
@family_option
@adapter_option
@json_option("Print what was written as JSON.")
@report_option
@force_option("a folder of ranges, and a report")
def calibrate(
    checkpoint: str,
    out: Path,
    family: str | None,
    adapters: tuple[str, ...],
    as_json: bool,
    report: Path | None,
    force: bool,
    **options: Any,
) -> None:
    """Measure CHECKPOINT's activations on text, one layer in memory at a time.

    A run that was interrupted goes on where it stopped.
    """
    from glm_export import api
    from glm_export.reports.files import asked_report

    helped = WorkerOptions(**picked(WorkerOptions, options))
    asked = asked_report(report, typed_line(), force=force, sources=(checkpoint, out))
    opened = api.open_checkpoint(checkpoint, family, adapters)
    with progress() as bars, workers(helped, (checkpoint, family, adapters)) as spread:
        ranges = api.calibrate(
            opened, out, CalibrationOptions(**options), force=force, progress=bars, spread=spread,
            on_plan=lambda read: show_calibration_plan(MESSAGES, opened, read),
        )  # fmt: skip
    if asked is not None:
        from glm_export.reports.run import subject_of
        from glm_export.reports.verbs.calibrate import calibrate_report

        asked.write(calibrate_report(ranges, subject_of(opened, checkpoint), asked.stopwatch.run()))
    show_ranges(MESSAGES, ranges)
    show_written(MESSAGES, asked)
    if as_json:
        from glm_export.deployment.inspect import inspect_folder

        show_json(inspect_folder(str(ranges.folder)) | {"corpus": ranges.manifest["corpus"]})


@contextmanager
def workers(asked: WorkerOptions, opening: tuple[str, str | None, tuple[str, ...]]) -> Iterator[Spread | None]:
    """Those of a Ray cluster, if they are asked for; each opens the checkpoint for itself.

    Args:
        asked: which.
        opening: arguments of :func:`~glm_export.api.open_checkpoint`, found on every node.
    """
    if not asked.ray:
        yield None
        return
    import torch

    from glm_export import api
    from glm_export.calibration.layerwise.shards import Opening, Spread
    from glm_export.cluster.join import joined
    from glm_export.cluster.spread import spread

    # As many threads as here: others may divide sums in another way.
    cpus = torch.get_num_threads()
    with joined(asked.ray_address) as nodes:
        count = asked.workers or max(1, nodes.engines(cpus))
        yield Spread(
            partial(spread, at_once=2 * count, cpus=min(cpus, nodes.most)), Opening(api.open_checkpoint, opening)
        )


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
        f"[bold]{escape(config.family)}[/], {counted(config.num_layers, 'layer')}; corpus {escape(corpus.name)}: "
        f"{counted(len(corpus.samples), 'row')}, {counted(corpus.tokens, 'token')} ({escape(corpus.licence)})",
        soft_wrap=True,
    )
    console.print(
        f"  disk    {size(2 * corpus.tokens * config.hidden_size * 2)} for hidden states while it runs\n"
        f"  memory  one layer in float32, {size(max(parameters, head) * DTYPE_BYTES['float32'])}, "
        "and what is measured of it",
        soft_wrap=True,
    )


def _count(shape: Sequence[int]) -> int:
    count = 1
    for dim in shape:
        count *= dim
    return count


def show_ranges(console: Console, ranges: Ranges) -> None:
    """Where the ranges are, and the inputs that reach furthest."""
    from glm_export.calibration.ranges import KEY, VALUE, kv_name

    furthest = sorted(ranges.inputs, key=lambda name: -ranges.threshold(name, "min_max"))
    last = ranges.layers - 1
    rows = [
        (name.removesuffix(".weight"), *(f"{ranges.threshold(name, key):.3g}" for key in SHOWN_OBSERVERS))
        for name in (*furthest[:SHOWN_INPUTS], kv_name(last, KEY), kv_name(last, VALUE))
    ]
    heads = [Column("input of"), *columns(*(name.replace("_", "-") for name in SHOWN_OBSERVERS), number=True)]
    title = "inputs that reach furthest, and where each observer would clip"
    show_table(console, heads, rows, title=title)
    total = sum(path.stat().st_size for path in ranges.folder.iterdir())
    console.print(f"[green]wrote[/] {escape(str(ranges.folder))} ({size(total)})", soft_wrap=True)
