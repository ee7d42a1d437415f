"""The target ``transformers.js``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rich_click as click

from glm_export.deployment.layouts.options import LayoutOptions
from glm_export.terminal.console import FOLDER, flags
from glm_export.terminal.deploy.laid_out import show_laid_out


@click.command("transformers.js")
@click.argument("folder")
@click.option("--out", type=FOLDER, required=True, help="The model's folder; its name is the model's.")
@flags(LayoutOptions)
def transformers_js(folder: str, out: Path, **options: Any) -> None:
    """Lay FOLDER, an exported folder, out as transformers.js reads models, in Node.js or a browser."""
    from glm_export.deployment.layouts.transformers_js import write_transformers_js

    show_laid_out(write_transformers_js(folder, out, LayoutOptions(**options)))
