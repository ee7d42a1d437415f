"""The target ``foundry-local``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rich_click as click

from glm_export.deployment.layouts.options import LayoutOptions
from glm_export.terminal.console import FOLDER, flags
from glm_export.terminal.deploy.laid_out import show_laid_out


@click.command("foundry-local")
@click.argument("folder")
@click.option("--out", type=FOLDER, required=True, help="The model's folder, in a folder of models.")
@click.option("--name", help="Of the model in Foundry Local. Default: the folder's.")
@flags(LayoutOptions)
def foundry_local(folder: str, out: Path, name: str | None, **options: Any) -> None:
    """Lay FOLDER, an exported folder, out as a model of Foundry Local and of onnxruntime-genai."""
    from glm_export.deployment.layouts.foundry_local import write_foundry_local

    show_laid_out(write_foundry_local(folder, out, LayoutOptions(**options), name=name))
