"""The verb ``plot``."""

from __future__ import annotations

from pathlib import Path

import rich_click as click
from rich.markup import escape

from glm_export.terminal.console import FOLDER, MESSAGES, force_option, json_option, show_json, size


@click.command()
@click.argument("sources", type=FOLDER, nargs=-1, required=True)
@click.option("--out", type=FOLDER, required=True, metavar="FILE", help="FILE.svg, FILE.png or FILE.csv.")
@click.option(
    "--theme",
    type=click.Choice(["auto", "light", "dark"]),
    default="auto",
    show_default=True,
    help="Colours; auto: an SVG has both and its reader's system chooses, a PNG is light.",
)
@json_option("Print what was written as JSON.")
@force_option("a plot")
def plot(sources: tuple[Path, ...], out: Path, theme: str, as_json: bool, force: bool) -> None:
    """Draw what verbs measured: a folder of ranges, what layers cost, or programs beside each other.

    SOURCES are a folder of `calibrate`; or the JSON of `quality --by-layer`; or exported folders, and JSON of `bench`
    and `quality`, printed with --json or written beside a --report.
    """
    from glm_export.reports.pictures.plot import plot as draw

    path = draw(sources, out, theme=theme, force=force)
    written = path.stat().st_size
    MESSAGES.print(f"[green]wrote[/] {escape(str(path))} ({size(written)})", soft_wrap=True)
    if as_json:
        show_json({"plot": str(path), "bytes": written})
