"""A built engine loaded and asked what it is made of: layers and device memory. Needs a GPU."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm_export.engines.layers import EngineLayer, layers_of_inspector
from glm_export.engines.vendor import TensorRT
from glm_export.errors import CheckpointError, GlmExportError, reason
from glm_export.machine.gpu import has_driver

NO_GPU = "there is no NVIDIA GPU here"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """An engine's layers, and bytes of activations by profile."""

    layers: list[EngineLayer]
    activations: list[int]


def deserialize(tensorrt: TensorRT, plan: Path) -> tuple[Any, Any]:
    """Load a plan.

    Returns:
        TensorRT's runtime, which must outlive the engine, and the engine.

    Raises:
        EnvironmentMissingError: there is no GPU.
        CheckpointError: TensorRT will not have it; its own words are in the message.
    """
    tensorrt.require_driver("loading an engine")
    trt = tensorrt.module
    tensorrt.log.clear()
    runtime = trt.Runtime(tensorrt.logger)
    if tensorrt.find("Runtime.engine_host_code_allowed") is not None:
        # A version-compatible plan brings the lean runtime's code along; the plan is the user's own.
        runtime.engine_host_code_allowed = True
    # A mapped file takes no memory of its own while its weights go to the device.
    with plan.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        engine = runtime.deserialize_cuda_engine(mapped)
        if engine is None:
            said = tensorrt.log.reason
            verdict = _invalidity(tensorrt, runtime, mapped)
            raise CheckpointError(f"{tensorrt.name} {tensorrt.version} cannot load {plan}: {verdict}{said}")
    return runtime, engine


def _invalidity(tensorrt: TensorRT, runtime: Any, plan: mmap.mmap) -> str:
    """TensorRT-RTX's own verdict on a plan it would not have, e.g. ``UNSUPPORTED_CC``."""
    if tensorrt.find("Runtime.get_engine_validity") is None:
        return ""
    trt = tensorrt.module
    _, diagnostics = runtime.get_engine_validity(plan[: runtime.engine_header_size])
    flags = trt.EngineInvalidityDiagnostics.__members__.items()
    named = [name for name, flag in flags if int(diagnostics) & int(flag)]
    return f"{', '.join(named)}: " if named else ""


def try_inspection(tensorrt: TensorRT, plan: Path) -> tuple[Inspection | None, str | None]:
    """Ask a plan on disk where that is possible: one for another GPU is whole, though this machine cannot load it.

    Returns:
        What it is made of; or None, and why it could not be asked.
    """
    if not has_driver():
        return None, NO_GPU
    try:
        return inspect_engine(tensorrt, plan), None
    except GlmExportError as error:
        # The folder has another name by the time anybody reads this.
        return None, str(error).replace(str(plan), plan.name)


def inspect_engine(tensorrt: TensorRT, plan: Path) -> Inspection:
    """Ask a plan on disk.

    Raises:
        EnvironmentMissingError: there is no GPU.
        CheckpointError: it cannot be loaded, or its inspector's answer cannot be read.
    """
    runtime, engine = deserialize(tensorrt, plan)
    inspector = engine.create_engine_inspector()
    try:
        text = inspector.get_engine_information(tensorrt.module.LayerInformationFormat.JSON)
        found = Inspection(layers=layers_of_inspector(text), activations=activations(tensorrt, engine))
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{tensorrt.name} {tensorrt.version} described {plan} in a way this version cannot read: {reason(error)}"
        ) from error
    finally:
        del inspector, engine, runtime
    return found


def activations(tensorrt: TensorRT, engine: Any) -> list[int]:
    """Bytes of device memory that a context of each profile takes; one figure for all up to TensorRT 9."""
    profiles = range(engine.num_optimization_profiles)
    for name in ("get_device_memory_size_for_profile_v2", "get_device_memory_size_for_profile"):
        if tensorrt.find(f"ICudaEngine.{name}") is not None:
            return [int(getattr(engine, name)(index)) for index in profiles]
    return [int(engine.device_memory_size) for _ in profiles]


def refit(tensorrt: TensorRT, engine: Any, model: Path) -> None:
    """Put the weights of an ONNX program into an engine that was built without.

    Raises:
        CheckpointError: they do not fit.
    """
    trt = tensorrt.module
    refitter = trt.Refitter(engine, tensorrt.logger)
    tensorrt.log.clear()
    reader = trt.OnnxParserRefitter(refitter, tensorrt.logger)
    if not reader.refit_from_file(str(model)) or not refitter.refit_cuda_engine():
        raise CheckpointError(f"the weights of {model} do not fit the engine: {tensorrt.log.reason}; build again")
