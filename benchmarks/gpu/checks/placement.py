"""Where ONNX Runtime runs each node of a program, and how often it copies between GPU and host on the way.

Told by its own profile of a prompt and a few steps. A copy (a ``Memcpy`` node) stops the GPU in every step, and the
runtime captures no program with one as a CUDA graph.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
from at_work import greedy, known_prompts
from onnxruntime_parts import CASES, measured_ranges, require_cuda
from record import Facts, Kit, Recorder

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.calibration import recipes
from glm_export.exporter.options import ExportOptions
from glm_export.sessions.onnxruntime.session import OrtSession

MEMCPY = "Memcpy"
GPU = "CUDAExecutionProvider"
STEPS = 3
NAMED = 6
"""Kinds of nodes that the report names."""


def placement(recorder: Recorder) -> None:
    """Every program of the embedded model that runs in ONNX Runtime."""
    for dialect, dtype, recipe in CASES["demo"]:
        name = " ".join(filter(None, (dialect, dtype, recipe)))
        recorder.step(name, partial(placed_case, recorder, dialect, dtype, recipe))


def placed_case(recorder: Recorder, dialect: str, dtype: str, recipe: str | None) -> Facts:
    """Export one, and look."""
    folder = recorder.folder()
    needs_ranges = recipe is not None and recipes.load(recipe).needs != "nothing"
    ranges = measured_ranges("demo", folder) if needs_ranges else None
    program = api.export(
        "demo",
        folder / "program",
        ExportOptions(dialect=dialect, dtype=dtype, recipe=recipe, ranges=ranges),
        force=True,
    )
    return placed(program, folder, recorder.kit)


def placed(program: OnnxProgram, folder: Path, kit: Kit) -> Facts:
    """Nodes by where they ran, counted once each; a program that is to be captured must not copy."""
    nodes = profiled(program, folder, kit)
    copies = [op for op, _ in nodes.values() if op.startswith(MEMCPY)]
    on_cpu = Counter(op for op, provider in nodes.values() if provider != GPU and not op.startswith(MEMCPY))
    on_gpu = len(nodes) - len(copies) - on_cpu.total()
    captured = program.signature.counts_positions
    most = ", ".join(f"{op} {count}" for op, count in on_cpu.most_common(NAMED))
    facts: Facts = {
        "memcpy": len(copies), "cpu": on_cpu.total(), "gpu": on_gpu, "on_cpu": dict(on_cpu),
        "found": f"{on_gpu} nodes on the GPU, {on_cpu.total()} on the CPU{f' ({most})' if most else ''}, "
        f"{len(copies)} {MEMCPY}",
        "passed": not (captured and copies),
    }  # fmt: skip
    if captured and copies:
        facts["means"] = f"{program.dialect} {program.dtype} has {MEMCPY} nodes: no CUDA graph can be captured"
    return facts


def profiled(program: OnnxProgram, folder: Path, kit: Kit) -> dict[str, tuple[str, str]]:
    """Each node that ran: its operator and its provider."""
    with OrtSession(program) as session:
        require_cuda(session.runtime, kit)
        session.runtime = with_profile(session, folder)
        greedy(session, known_prompts(session, "demo", 1), STEPS)
        path = Path(session.runtime.end_profiling())
    events = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    return nodes_of(events)


def with_profile(session: OrtSession, folder: Path) -> onnxruntime.InferenceSession:
    """The same program with the same options in a second runtime that keeps a profile."""
    first = session.runtime
    options = first.get_session_options()
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    chosen = [(name, first.get_provider_options()[name]) for name in first.get_providers()]
    return onnxruntime.InferenceSession(str(session.program.model_path), options, providers=chosen)


def nodes_of(events: list[dict[str, Any]]) -> dict[str, tuple[str, str]]:
    """Of a profile's events, the kernels that ran."""
    return {
        event["name"].removesuffix("_kernel_time"): (event["args"]["op_name"], event["args"]["provider"])
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    }
