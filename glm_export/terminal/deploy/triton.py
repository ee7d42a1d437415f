"""The target ``triton``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import rich_click as click
from rich.markup import escape

from glm_export.errors import InputError
from glm_export.serving.options import ServeOptions
from glm_export.serving.triton.options import ENGINE, RepositoryOptions
from glm_export.serving.triton.settings import SETTINGS
from glm_export.spec.option import flag
from glm_export.terminal.console import FOLDER, GIVEN, MODEL, RESULTS, flags, json_option, picked, show_json, size


@click.command()
@click.argument("folder", shell_complete=MODEL.shell_complete)
@click.option("--out", type=FOLDER, required=True, help="The repository: a folder with a folder for each model.")
@flags(RepositoryOptions)
@flags(ServeOptions, *SETTINGS, panel="Of the engine")
@json_option("Print what was written as JSON.")
def triton(folder: str, out: Path, as_json: bool, **options: Any) -> None:
    """Put FOLDER, an exported folder or an engine, into a model repository of Triton Inference Server."""
    from glm_export.serving.triton.repository import write_model

    _require_engine(options["backend"])
    engine = ServeOptions(**picked(ServeOptions, options))
    written = write_model(folder, out, RepositoryOptions(**options), engine)
    if as_json:
        show_json(asdict(written))
        return
    linked = f", {size(written.linked_bytes)} of it hard links" if written.linked_bytes else ""
    said = f"{written.folder} ({size(written.total_bytes)}{linked})"
    RESULTS.print(f"[green]wrote[/] {escape(said)}, for Triton's backend {written.backend}", soft_wrap=True)
    for note in written.notes:
        RESULTS.print(f"[yellow]note[/] {escape(note)}", soft_wrap=True)


def _require_engine(backend: str) -> None:
    """See that options of the engine are given where there is one.

    Raises:
        InputError: the backend has none.
    """
    context = click.get_current_context()
    assert context is not None
    sources = {name: context.get_parameter_source(name) for name in SETTINGS}
    given = [flag(ServeOptions, name) for name, source in sources.items() if source and source.name in GIVEN]
    if given and backend != ENGINE:
        raise InputError(f"{', '.join(given)} is the engine's, and backend {backend} has none; leave it out")
