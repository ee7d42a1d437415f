"""The verb ``top``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import rich_click as click
from rich.cells import cell_len
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from glm_export.errors import GlmExportError
from glm_export.serving.metrics.reading import ModelLoad, Reading, loads, read_metrics
from glm_export.serving.options import keys_of
from glm_export.terminal.console import FOLDER, RESULTS, json_option, show_json, size
from glm_export.terminal.frame.tables import Column, columns, show_table

FIGURES = ("running", "waiting", "read tokens/s", "written tokens/s", "first token", "prefixes")
LEAST_FIRST = ("prefixes", "read tokens/s", "first token", "waiting")
"""Which figures the live table leaves out where the screen is narrow, the one that is missed least first."""
LEAST_NAME = 12
"""Columns of a model's name before a figure goes; longer names are folded."""


@click.command()
@click.argument("url")
@click.option("--api-key-file", type=FOLDER, help="A key that opens the server, on the first line.")
@click.option("--interval", type=click.FloatRange(0.1, 3600), default=1.0, show_default=True, help="Seconds.")
@click.option("--once", is_flag=True, help="Print one table, of one interval, and end.")
@json_option("With --once: print as JSON.")
def top(url: str, api_key_file: Path | None, interval: float, once: bool, as_json: bool) -> None:
    """Show what the server at URL does: rows, tokens a second, and what is kept, of each model."""
    if as_json and not once:
        raise click.UsageError("--json prints one table; give --once, too")
    key = None if api_key_file is None else keys_of(api_key_file)[0]
    before = read_metrics(url, key)
    if once:
        time.sleep(interval)
        found = loads(before, read_metrics(url, key))
        if as_json:
            show_json([asdict(load) for load in found])
        else:
            show_table(RESULTS, [Column("model"), *columns(*FIGURES, number=True)], [_row(load) for load in found])
        return
    try:
        with Live(console=RESULTS, auto_refresh=False, transient=False) as live:
            while True:
                time.sleep(interval)
                before = _show(live, url, key, before)
    except KeyboardInterrupt:
        return  # how one leaves


def _show(live: Live, url: str, key: str | None, before: Reading) -> Reading:
    """One reading more; a server that does not answer is waited for."""
    try:
        now = read_metrics(url, key)
    except GlmExportError as error:
        live.update(escape(str(error)), refresh=True)
        return before
    live.update(table_of(loads(before, now), RESULTS.width), refresh=True)
    return now


def table_of(models: Sequence[ModelLoad], width: int) -> Table:
    """A row for each model, whole figures in as many columns as the screen has room for.

    Args:
        models: what each does.
        width: of the screen, in columns.
    """
    rows = [_row(load) for load in models]
    # Heads of two lines: narrower than one, and figures are short.
    heads = [name.replace(" ", "\n") for name in FIGURES]
    wide = [
        max(map(cell_len, [*head.split("\n"), *(row[place] for row in rows)])) for place, head in enumerate(heads, 1)
    ]
    name = min(max([len("model"), *(cell_len(load.model) for load in models)]), LEAST_NAME)
    shown, left_out = list(range(len(FIGURES))), []
    for figure in LEAST_FIRST:
        # Every column has a blank on each side, and a line behind it.
        if 1 + name + 3 + sum(wide[place] + 3 for place in shown) <= width:
            break
        shown.remove(FIGURES.index(figure))
        left_out.append(figure)
    caption = f"a wider screen shows {', '.join(left_out)}" if left_out else None
    table = Table(caption=caption, caption_justify="left")
    table.add_column("model", overflow="fold")
    for place in shown:
        table.add_column(heads[place], justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row[0], *(row[1 + place] for place in shown))
    return table


def _row(load: ModelLoad) -> tuple[str, ...]:
    first = "" if load.first_token_s is None else f"{load.first_token_s * 1000:,.0f} ms"
    return (
        escape(load.model),
        f"{load.running:,}",
        f"{load.waiting:,}",
        f"{load.read_rate:,.1f}",
        f"{load.written_rate:,.1f}",
        first,
        size(load.prefix_bytes),
    )
