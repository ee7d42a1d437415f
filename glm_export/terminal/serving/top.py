"""The verb ``top``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import rich_click as click
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from glm_export.errors import GlmExportError
from glm_export.serving.metrics.reading import ModelLoad, Reading, loads, read_metrics
from glm_export.serving.options import keys_of
from glm_export.terminal.console import FOLDER, RESULTS, json_option, show_json, size
from glm_export.terminal.frame.tables import Column, columns, show_table

FIGURES = ("running", "waiting", "read tokens/s", "written tokens/s", "first token", "prefixes")


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
    live.update(table_of(loads(before, now)), refresh=True)
    return now


def table_of(models: Sequence[ModelLoad]) -> Table:
    """A row for each model."""
    table = Table("model")
    for column in FIGURES:
        table.add_column(column, justify="right", overflow="fold")
    for load in models:
        table.add_row(*_row(load))
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
