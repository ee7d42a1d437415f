"""The verbs of the command line that know engines: ``build`` and ``doctor``."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import rich_click as click
from rich.console import Console

from glm_export import families
from glm_export.calibration import recipes
from glm_export.engines.options import HARDWARE
from glm_export.engines.vendor import RUNTIMES
from glm_export.errors import InputError
from glm_export.spec.dtypes import DTYPES

MESSAGES = Console(stderr=True, highlight=False)
FOLDER = click.Path(path_type=Path)
GIGABYTE = 10**9


@click.command()
@click.argument("source")
@click.option("--out", type=FOLDER, required=True, help="Folder to write.")
@click.option("--runtime", type=click.Choice(RUNTIMES), help="Default: tensorrt where it can build, else tensorrt-rtx.")
@click.option("--max-batch", type=int, default=4, show_default=True, help="Rows of a decode step.")
@click.option("--max-context", type=int, help="Tokens of a row, written and read; default: what the program holds.")
@click.option(
    "--prefill-tokens", type=int, help="Tokens read at once; longer prompts take several calls. Default: 512."
)
@click.option("--prefill-batch", type=int, help="Rows read at once. Default: 1; with a growing cache --max-batch.")
@click.option("--dtype", type=click.Choice(DTYPES), help="For a checkpoint: of weights and cache. Default: float16.")
@click.option("--recipe", type=click.Choice(recipes.names()), help="For a checkpoint: quantize.")
@click.option("--ranges", type=FOLDER, help="For a checkpoint: what `calibrate` measured.")
@click.option("--family", type=click.Choice(families.names()), help="Where config.json leaves it open.")
@click.option("--implicit-int8", is_flag=True, help="TensorRT up to 10, dialect portable: it chooses what is INT8.")
@click.option("--calibrator", type=click.Choice(["entropy", "min-max"]), help="Of implicit INT8. Default: entropy.")
@click.option("--calibration-cache", type=FOLDER, help="Measured before; default: the program's own, if it has one.")
@click.option("--corpus", help="What implicit INT8 is measured on: a .txt or .jsonl, or default, poems, technical.")
@click.option("--workspace", type=float, help="Gigabytes of scratch a kernel may use; default: TensorRT's.")
@click.option("--optimization-level", type=click.IntRange(0, 5), help="0 builds fast, 5 searches long.")
@click.option("--version-compatible", is_flag=True, help="Later versions of TensorRT load it.")
@click.option("--hardware-compatible", type=click.Choice(list(HARDWARE)), help="Other GPUs load it.")
@click.option("--refittable", is_flag=True, help="Weights can be exchanged.")
@click.option("--stripped", is_flag=True, help="No weights in the plan: they are put in from ONNX when it is loaded.")
@click.option("--weight-streaming", is_flag=True, help="Weights may stay in host memory.")
@click.option("--compute-capability", "targets", multiple=True, help="Target of TensorRT-RTX, e.g. 8.9; or current.")
@click.option("--timing-cache", type=FOLDER, help="Kernels measured before; default: in ~/.cache/glm-export.")
@click.option("--force", is_flag=True, help="Replace an engine.")
def build(source: str, out: Path, implicit_int8: bool, **options: Any) -> None:
    """Build a TensorRT engine of SOURCE, an exported folder or a checkpoint.

    TensorRT-RTX builds without a GPU; engines run where there is one.
    """
    from glm_export import api
    from glm_export.deployment.build import build_requested
    from glm_export.deployment.request import BuildRequest, CheckpointKeywords, ImplicitInt8
    from glm_export.engines.options import BuildOptions
    from glm_export.terminal.console import ProgressBars
    from glm_export.terminal.engine_tables import show_build_plan, show_built

    workspace = options.pop("workspace")
    if workspace is not None and not math.isfinite(workspace):
        raise InputError(f"--workspace is a number of gigabytes, found {workspace}")
    measured = {name: options.pop(name) for name in ("calibrator", "calibration_cache", "corpus")}
    if not implicit_int8 and any(measured.values()):
        given = ", ".join(f"--{name.replace('_', '-')}" for name, value in measured.items() if value)
        raise click.UsageError(f"{given} belongs to --implicit-int8; give that, too, or leave it out")
    chosen = BuildOptions(
        compute_capabilities=options.pop("targets"),
        workspace_bytes=None if workspace is None else int(workspace * GIGABYTE),
        **{
            name: options.pop(name)
            for name in (
                "version_compatible", "hardware_compatible", "refittable", "stripped", "weight_streaming",
                "optimization_level",
            )
        },
    )  # fmt: skip
    export = CheckpointKeywords(
        dtype=options.pop("dtype"), recipe=options.pop("recipe"), ranges=api.open_ranges(options.pop("ranges"))
    )
    legacy = ImplicitInt8(
        algorithm=measured["calibrator"] or "entropy", cache=measured["calibration_cache"],
        corpus=measured["corpus"] or "default",
    )  # fmt: skip
    with ProgressBars(MESSAGES) as bars:
        request = BuildRequest(
            source=source, out=out, **options, export=export, options=chosen,
            implicit_int8=legacy if implicit_int8 else None,
        )  # fmt: skip
        engine = build_requested(request, progress=bars, on_plan=lambda plan: show_build_plan(MESSAGES, plan))
    show_built(MESSAGES, engine)


@click.command()
@click.argument("folders", nargs=-1, type=FOLDER)
@click.option("--thorough", is_flag=True, help="Read every plan whole, to see that it is undamaged.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def doctor(folders: tuple[Path, ...], thorough: bool, as_json: bool) -> None:
    """Show what this machine has, and which FOLDERS it can run; exit 3 where one cannot."""
    from glm_export.deployment.doctor import diagnose
    from glm_export.terminal.engine_tables import show_diagnosis

    diagnosis = diagnose(list(folders), thorough=thorough)
    if as_json:
        click.echo(json.dumps(diagnosis.to_json(), indent=2))
    else:
        show_diagnosis(Console(highlight=False), diagnosis)
    if not diagnosis.every_folder_runs:
        sys.exit(3)
