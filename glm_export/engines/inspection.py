"""A built engine loaded and asked what it is made of: layers and device memory. Needs a GPU."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm_export.engines.layers import EngineLayer, layers_of_inspector
from glm_export.engines.vendor import TensorRT
from glm_export.errors import CheckpointError


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
        raise CheckpointError(f"{tensorrt.name} {tensorrt.version} cannot load {plan}: {tensorrt.log.reason}")
    return runtime, engine


def inspect_engine(tensorrt: TensorRT, plan: Path) -> Inspection:
    """Ask a plan on disk.

    Raises:
        EnvironmentMissingError: there is no GPU.
        CheckpointError: it cannot be loaded.
    """
    runtime, engine = deserialize(tensorrt, plan)
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(tensorrt.module.LayerInformationFormat.JSON)
    found = Inspection(layers=layers_of_inspector(text), activations=activations(tensorrt, engine))
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
