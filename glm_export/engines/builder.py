"""ONNX program folder -> engine folder, whole or not at all."""

from __future__ import annotations

import platform
import shutil
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import onnx_ir as ir

from glm_export.artifacts.engine import BUILD_LOG, PLAN, BuiltOn, Compatibility, Engine, load_engine, profile_json
from glm_export.artifacts.manifest import (
    CARD,
    ENGINE_MANIFEST,
    MANIFEST,
    MANIFEST_FORMAT,
    package_versions,
    recorded_files,
    write_json,
)
from glm_export.artifacts.output_folder import require_writable, whole_folder
from glm_export.artifacts.program import MODEL, WEIGHTS, OnnxProgram
from glm_export.calibration.trt_cache import CALIBRATION_CACHE
from glm_export.engines import vendor
from glm_export.engines.implicit_int8 import CalibratorFactory
from glm_export.engines.inspection import Inspection, try_inspection
from glm_export.engines.layers import LayerSummary, Promises, summarize
from glm_export.engines.memory import MemoryPlan, plan_memory
from glm_export.engines.network import require_dialect
from glm_export.engines.options import CURRENT, BuildOptions
from glm_export.engines.plan import BuildJob, BuildRecord, build
from glm_export.engines.profiles import profiles_of
from glm_export.errors import InputError
from glm_export.exporter.genai_config import GENAI_CONFIG
from glm_export.graphs.queries import producer_of
from glm_export.graphs.weight_traffic import program_weight_traffic
from glm_export.machine.gpu import driver_version, used_gpu
from glm_export.model_folder import inside
from glm_export.progress import NullProgress, Progress
from glm_export.spec.optimization_profile import Limits, OptimizationProfile

MOST_WEIGHT_RATIO = 1.2
"""Of an engine's weights to the program's: a few lie there twice, in a layout for each profile."""
FEW_BYTES = 64 << 20
"""In a small engine more of them do, which costs nobody anything."""
NOT_COPIED = {MODEL, WEIGHTS, MANIFEST, GENAI_CONFIG, CALIBRATION_CACHE, CARD}
"""Of a program's folder; a stripped engine takes model and weights along."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildPlan:
    """What a build will make, known before it starts."""

    program: OnnxProgram
    runtime: str
    version: str
    limits: Limits
    options: BuildOptions
    profiles: tuple[OptimizationProfile, OptimizationProfile]
    memory: MemoryPlan


def plan_build(
    program: OnnxProgram, out: Path, tensorrt: vendor.TensorRT, limits: Limits, options: BuildOptions
) -> BuildPlan:
    """Settle profiles and memory.

    Raises:
        InputError: the version cannot read the program's dialect.
        EnvironmentMissingError: the disk cannot hold the plan.
    """
    require_dialect(program, tensorrt)
    prefill, decode = profiles_of(program.signature, limits)
    return BuildPlan(
        program=program, runtime=tensorrt.name, version=tensorrt.version, limits=limits, options=options,
        # The builder keeps of its first profile what it made of the weights until the last is done: decoding first, it
        # peaks at 1.2 times the weights instead of 1.7 (benchmarks/engines).
        profiles=(decode, prefill),
        memory=plan_memory(program, limits, out, options.workspace_bytes),
    )  # fmt: skip


def build_engine(
    plan: BuildPlan,
    out: Path,
    tensorrt: vendor.TensorRT,
    *,
    timing_cache: Path | None = None,
    calibrator: CalibratorFactory | None = None,
    calibration_cache: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Engine:
    """Build an engine and write its folder.

    Args:
        plan: from :func:`plan_build`.
        out: the folder to write.
        tensorrt: the runtime.
        timing_cache: a file of measured kernels, read and added to (not with TensorRT-RTX, which measures none).
        calibrator: makes INT8 implicit; for TensorRT up to 10.
        calibration_cache: what the calibrator reads or writes; kept in the folder.
        force: replace an engine or program folder.
        progress: shows the builder's phases.

    Raises:
        InputError: ``out`` exists, a file of the program is a link, or the parser refuses a node.
        EnvironmentMissingError: the builder gives up.
    """
    given, out = out, require_writable(out, force=force, sources=[plan.program.folder])
    with whole_folder(out, force=force) as folder:
        job = BuildJob(
            program=plan.program, profiles=plan.profiles, options=plan.options, plan_path=folder / PLAN,
            log_path=folder / BUILD_LOG, timing_cache=None if tensorrt.rtx else timing_cache, calibrator=calibrator,
        )  # fmt: skip
        record, network = build(tensorrt, job, progress or NullProgress())
        inspected, not_inspected = try_inspection(tensorrt, folder / PLAN)
        _copy_beside(plan.program, folder, stripped=plan.options.stripped)
        if calibration_cache is not None and calibration_cache.is_file():
            shutil.copyfile(calibration_cache, folder / CALIBRATION_CACHE)
        values = _manifest(plan, tensorrt, record, network, inspected)
        values["memory"] |= weight_sizes(plan, record, (folder / PLAN).stat().st_size)
        values |= {"implicit_int8": calibrator is not None, "not_inspected": not_inspected}
        values |= recorded_files(folder)
        values["plan_sha256"] = values["sha256"][PLAN]
        write_json(folder / ENGINE_MANIFEST, values)
    return load_engine(given)


def _copy_beside(program: OnnxProgram, folder: Path, *, stripped: bool) -> None:
    """Tokenizer, configs and the numbers of a recipe; for a stripped plan the program that has the weights.

    What else lies in the program's folder is nobody's to copy.

    Raises:
        InputError: one of them is a link.
    """
    kept = NOT_COPIED - ({MODEL, WEIGHTS} if stripped else set())
    for name in program.manifest["sizes"]:
        if name in kept:
            continue
        path = inside(program.folder, name)
        if path.is_symlink():
            raise InputError(f"{path} is a link, and an engine's folder takes files along; export again")
        shutil.copyfile(path, folder / name)


def _manifest(
    plan: BuildPlan,
    tensorrt: vendor.TensorRT,
    record: BuildRecord,
    network: dict[str, int],
    inspected: Inspection | None,
) -> dict[str, Any]:
    options, names = plan.options, [profile.name for profile in plan.profiles]
    activations = inspected.activations if inspected is not None else record.activations
    gpu = None if tensorrt.rtx and options.compute_capabilities != (CURRENT,) else used_gpu()
    built_on = BuiltOn(
        system=platform.system(), gpu=gpu.name if gpu else None,
        compute_capability=gpu.compute_capability if gpu else None, driver=driver_version(),
    )  # fmt: skip
    targets = (
        (gpu.compute_capability,)
        if gpu and options.compute_capabilities == (CURRENT,)
        else options.compute_capabilities
    )
    memory = plan.memory.to_json() | {
        "activations": dict(zip(names, activations, strict=False)),
    }
    return {
        "format": MANIFEST_FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "runtime": plan.runtime,
        "version": plan.version,
        "built_on": asdict(built_on),
        "compatibility": asdict(
            Compatibility(
                version=options.version_compatible, hardware=options.hardware_compatible, stripped=options.stripped,
                targets=targets,
            )
        ),
        "options": asdict(options),
        "limits": asdict(plan.limits),
        "profiles": [profile_json(profile) for profile in plan.profiles],
        "memory": memory,
        "network_layers": network,
        "engine_layers": asdict(_summary(plan, record, inspected, names)),
        "step_bytes": _step_bytes(plan.program),
        "attention_decomposed": record.decomposed,
        "seconds": round(record.seconds, 2),
        "packages": package_versions(),
        "program": plan.program.manifest,
    }  # fmt: skip


def weight_sizes(plan: BuildPlan, record: BuildRecord, plan_bytes: int) -> dict[str, Any]:
    """Bytes of an engine's weights, as its builder counts them, and beside those of the program.

    Integers made float, and weights kept twice, show in the ratio; a stripped plan has none.
    """
    kept = plan.memory.weights
    held = record.weights or (kept if plan.options.stripped else plan_bytes)
    return {"plan": plan_bytes, "weights": held, "program_weights": kept, "weight_ratio": round(held / kept, 3)}


def has_excess_weights(memory: dict[str, Any]) -> bool:
    """Whether an engine's ``memory`` holds much more of weights than its program."""
    excess = memory["weights"] - memory["program_weights"]
    return bool(memory["weight_ratio"] > MOST_WEIGHT_RATIO and excess > FEW_BYTES)


def _step_bytes(program: OnnxProgram) -> dict[str, int]:
    """Bytes of weights that a decode step reads: whole ones, and rows of tables for each row of the batch."""
    one, two = (program_weight_traffic(program.model_path, rows) for rows in (1, 2))
    return {"weights": 2 * one - two, "row": two - one}


def _summary(plan: BuildPlan, record: BuildRecord, inspected: Inspection | None, profiles: list[str]) -> LayerSummary:
    layers = inspected.layers if inspected is not None else record.layers
    source = "inspector" if inspected is not None else "build log"
    return summarize(layers, source, profiles, promised_products(plan.program.model_path))


def promised_products(model_path: Path) -> Promises:
    """What a program says of its products."""
    both, weights = [], []
    for node in ir.load(model_path).graph:
        if node.op_type != "MatMul":
            continue
        name = str(node.name).rpartition("/")[0]
        widened = producer_of(node.inputs[0], "DequantizeLinear")
        if widened is not None and producer_of(widened.inputs[0], "QuantizeLinear") is not None:
            both.append(name)
        stored = producer_of(node.inputs[1], "DequantizeLinear")
        if stored is not None and stored.inputs[0] is not None and stored.inputs[0].is_initializer():
            weights.append(name)
    return Promises(both=tuple(both), weights=tuple(weights))
