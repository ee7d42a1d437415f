"""What a person sees of building: the plan before it, the summary after it, and the doctor's findings."""

from __future__ import annotations

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from glm_export.artifacts.engine import BUILD_LOG, Engine
from glm_export.deployment.doctor import Diagnosis
from glm_export.engines.builder import BuildPlan
from glm_export.engines.vendor import RUNTIMES
from glm_export.spec.signature import INPUT_IDS, Cache, past_names
from glm_export.terminal.console import size

WORTH_SHOWING = (
    "KV_CACHE_UPDATE", "ROTARY_EMBEDDING", "ATTENTION_INPUT", "NORMALIZATION", "MATRIX_MULTIPLY", "QUANTIZE",
    "DEQUANTIZE",
)  # fmt: skip
LISTED = 6


def show_build_plan(console: Console, plan: BuildPlan) -> None:
    """Program, profiles and memory, before the work begins."""
    program, memory = plan.program, plan.memory
    recipe = f", {program.recipe}" if program.recipe else ""
    console.print(
        f"[bold]{escape(program.config.family)}[/], {program.dialect} {program.dtype}{recipe} → "
        f"{plan.runtime} {plan.version}"
    )
    table = Table(box=SIMPLE, padding=(0, 1))
    table.add_column("profile")
    for name in ("least", "usual", "most"):
        table.add_column(name, justify="right")
    cache = past_names(0)[0]
    columns = "cache" if program.signature.cache is Cache.STATIC else "past"
    for profile in plan.profiles:
        corners = zip(profile.shapes[INPUT_IDS], profile.shapes[cache], strict=True)
        table.add_row(profile.name, *(f"{ids[0]} x {ids[1]}, {columns} {past[2]}" for ids, past in corners))
    console.print(table)
    workspace = "up to the device's" if memory.workspace is None else size(memory.workspace)
    console.print(
        f"  device  {size(memory.weights)} weights, {size(memory.cache_row)} keys and values a row, "
        f"{size(memory.cache)} for {plan.limits.max_batch}; workspace {workspace}\n"
        f"  host    about {size(memory.host)} while building, {size(memory.free_disk)} disk free",
        soft_wrap=True,
    )


def show_built(console: Console, engine: Engine) -> None:
    """What became of it."""
    manifest = engine.manifest
    activations = manifest["memory"]["activations"]
    console.print(
        f"built in {manifest['seconds']:.1f} s; weights {size(manifest['memory']['weights'])}, activations "
        + ", ".join(f"{name} {size(count)}" for name, count in activations.items())
    )
    network = manifest["network_layers"]
    counted = ", ".join(f"{network[kind]} {kind}" for kind in WORTH_SHOWING if kind in network)
    console.print(f"  network {counted}", soft_wrap=True)
    summary = manifest["engine_layers"]
    kinds = ", ".join(f"{count} {kind}" for kind, count in summary["kinds"].items())
    console.print(f"  engine  {summary['layers']} layers ({summary['source']}): {kinds}", soft_wrap=True)
    for name, precisions in summary["products"].items():
        counted = ", ".join(f"{count} {precision}" for precision, count in precisions.items())
        console.print(f"  {name:8}products: {counted}")
    missed = summary["not_integer"]
    if missed:
        more = f" and {len(missed) - LISTED} more" if len(missed) > LISTED else ""
        console.print(
            f"[yellow]Warning:[/] quantized in the program, computed in float: {', '.join(missed[:LISTED])}{more}"
        )
    if manifest["attention_decomposed"]:
        console.print("[yellow]Warning:[/] attention has no fused kernel for this dtype and head size; it is slower")
    total = sum(manifest["sizes"].values())
    console.print(
        f"[green]wrote[/] {escape(str(engine.folder))} ({size(total)}; {BUILD_LOG} has every word)", soft_wrap=True
    )


def show_diagnosis(console: Console, diagnosis: Diagnosis) -> None:
    """The machine, then a row a folder."""
    machine = diagnosis.machine
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    gpus = [
        f"{gpu.name}, compute capability {gpu.compute_capability}, {size(gpu.memory_bytes)}" for gpu in machine.gpus
    ]
    table.add_row("gpu", escape("\n".join(gpus) or "none found"))
    table.add_row("driver", escape(diagnosis.driver or "none found"))
    for name in RUNTIMES:
        table.add_row(name, escape(machine.versions.get(name) or machine.missing[name]))
    table.add_row("providers", escape(", ".join(diagnosis.providers)))
    table.add_row("python", f"{diagnosis.python}, {machine.system}")
    for name, found in diagnosis.packages.items():
        if found is not None:
            table.add_row(name, escape(found))
    console.print(table)
    for verdict in diagnosis.folders:
        mark = "[green]runs[/]" if verdict.runs else "[red]does not run[/]"
        where = f", {verdict.runs_on}" if verdict.runs_on else ""
        console.print(f"\n{escape(verdict.folder)}: {mark} ({verdict.kind}{where})", soft_wrap=True)
        for obstacle in verdict.obstacles:
            console.print(f"  - {escape(obstacle)}", soft_wrap=True)
