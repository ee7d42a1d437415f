"""The verb ``serve``."""

from __future__ import annotations

import logging
from typing import Any

import rich_click as click
from rich.markup import escape

from glm_export.serving.options import ServeOptions
from glm_export.terminal.console import MESSAGES, flags


@click.command()
@click.argument("models", nargs=-1, required=True)
@flags(ServeOptions)
@click.option("--access-log", is_flag=True, help="A line of JSON a request, on standard error.")
def serve(models: tuple[str, ...], access_log: bool, **options: Any) -> None:
    """Serve MODELS (exported folders, engines, checkpoints, `demo`) by OpenAI's API, batched continuously.

    Ends on SIGTERM or Ctrl-C, when what was accepted is answered.
    """
    from glm_export.serving.server import serve as run

    if access_log:
        logging.getLogger("glm_export.access").setLevel(logging.INFO)

    def announce(address: str) -> None:
        names = ", ".join(models)
        MESSAGES.print(f"serving {escape(names)} at {address}/v1", soft_wrap=True)

    run(models, ServeOptions(**options), announce)
