"""The verb ``serve``."""

from __future__ import annotations

import logging
from typing import Any

import rich_click as click
from rich.markup import escape

from glm_export.errors import InputError
from glm_export.serving.options import ServeOptions
from glm_export.serving.ray.options import RayOptions
from glm_export.spec.option import flag
from glm_export.terminal.console import CLUSTER, MESSAGES, MODEL, flags, picked

ROWS = "Rows and their tokens"


@click.command()
@click.argument("models", nargs=-1, required=True, type=MODEL)
@flags(ServeOptions, "host", "port", "api_key_file", "max_body_megabytes")
@click.option("--access-log", is_flag=True, help="A line of JSON a request, on standard error.")
@flags(ServeOptions, "otlp_traces_endpoint")
@flags(ServeOptions, "max_batch", "max_context", "chunk_tokens", "exact", "speculate", "prefix_megabytes", panel=ROWS)
@flags(ServeOptions, "allow_special_tokens", "threads", "no_cache", panel=ROWS)
@flags(ServeOptions, "queue", "wait_seconds", "deadline", "drain_seconds", panel="How long it takes")
@click.option("--ray", is_flag=True, panel=CLUSTER, help="Spread engines over a Ray cluster; needs the extra `ray`.")
@flags(RayOptions, before="With --ray: ", panel=CLUSTER)
def serve(models: tuple[str, ...], access_log: bool, ray: bool, **options: Any) -> None:
    """Serve MODELS (exported folders, engines, checkpoints, `demo`) by OpenAI's API, batched continuously.

    Ends on SIGTERM or Ctrl-C, when what was accepted is answered.
    """
    from glm_export.serving.server import serve as run

    spread = picked(RayOptions, options)
    if access_log:
        logging.getLogger("glm_export.access").setLevel(logging.INFO)

    def announce(address: str) -> None:
        names = ", ".join(models)
        MESSAGES.print(f"serving {escape(names)} at {address}/v1", soft_wrap=True)

    if not ray:
        _require_alone(spread)
        run(models, ServeOptions(**options), announce)
        return
    from glm_export.serving.ray.cluster import serve_on_ray

    serve_on_ray(models, ServeOptions(**options), RayOptions(**spread), announce, access_log=access_log)


def _require_alone(given: dict[str, Any]) -> None:
    default = RayOptions()
    for name, value in given.items():
        if value != getattr(default, name):
            raise InputError(f"{flag(RayOptions, name)} is for a Ray cluster; add --ray, or leave it out")
