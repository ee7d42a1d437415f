"""``config.pbtxt`` of a model, built by Triton's own schema: what goes in, what comes out, and how it is scheduled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from glm_export.artifacts.engine import Engine
from glm_export.artifacts.program import OnnxProgram
from glm_export.engines.vendor import TENSORRT
from glm_export.errors import EnvironmentMissingError, InputError
from glm_export.serving.options import ServeOptions
from glm_export.serving.triton.settings import to_parameters
from glm_export.serving.triton.tensors import INPUTS, OUTPUTS
from glm_export.spec.dtypes import TRITON_DTYPES
from glm_export.spec.session_entries import session_entries
from glm_export.spec.signature import Cache, Signature, TensorSpec

CONFIG = "config.pbtxt"
ANY = -1
HEADER = "# Written by glm-export. By Triton's schema: tritonclient.grpc.model_config_pb2.ModelConfig.\n"
LEAST_TENSORRT = 10
"""Before it, an engine's inputs of int64 were int32."""


def schema() -> Any:
    """Triton's ``ModelConfig``, as its client brings it along.

    Raises:
        EnvironmentMissingError: the client is not installed.
    """
    try:
        from tritonclient.grpc import model_config_pb2
    except (ImportError, RuntimeError) as error:  # without grpc it raises the latter
        raise EnvironmentMissingError(
            "a Triton repository needs tritonclient with grpc, which is not installed; pip install 'glm-export[triton]'"
        ) from error
    return model_config_pb2


def as_text(config: Any) -> str:
    """A config as ``config.pbtxt`` has it."""
    from google.protobuf import text_format

    return HEADER + str(text_format.MessageToString(config))


def python_config(name: str, options: ServeOptions) -> Any:
    """Of the engine behind the Python backend: decoupled, without batching of Triton's own, one instance.

    Args:
        name: of the model.
        options: of the engine.
    """
    # KIND_MODEL: the session itself takes the processor or the GPU.
    config = _config(name, "python", kind="KIND_MODEL")
    config.model_transaction_policy.decoupled = True
    for tensors, entries in ((INPUTS, config.input), (OUTPUTS, config.output)):
        for tensor in tensors:
            _add(entries, tensor.name, tensor.dtype, [tensor.size])
    for entry in config.input:
        entry.optional = True
    _say(config, to_parameters(options))
    return config


def program_config(name: str, program: OnnxProgram) -> Any:
    """Of a program behind the ONNX Runtime backend: one call of the decoder, whose cache the client keeps.

    Raises:
        InputError: the backend has no such dtype.
    """
    if program.dtype not in TRITON_DTYPES or TRITON_DTYPES[program.dtype] == "BF16":
        raise InputError(
            f"Triton's ONNX Runtime backend takes no {program.dtype}; export with --dtype float16 or float32, or take "
            "--backend python"
        )
    config = _config(name, "onnxruntime", kind="KIND_AUTO")
    _describe(config, program.signature)
    return config


def program_notes(program: OnnxProgram) -> tuple[str, ...]:
    """What the ONNX Runtime backend cannot do with a program, a line each."""
    notes = []
    if entries := session_entries(program.recipe):
        said = ", ".join(f"{key}={value}" for key, value in entries.items())
        notes.append(f"ONNX Runtime cannot be told {said}, with which the program was proven: answers may differ")
    if program.config.prefix_length:
        notes.append("the model's learned prefix is in no file of the repository; it is the client's first past")
    return tuple(notes)


def engine_config(name: str, engine: Engine) -> Any:
    """Of an engine behind the TensorRT backend: one call of the decoder, whose cache the client keeps.

    Raises:
        InputError: the backend cannot run it.
    """
    if engine.runtime != TENSORRT:
        raise InputError(
            f"Triton's TensorRT backend loads plans of TensorRT, found one of {engine.runtime}; build with --runtime "
            f"{TENSORRT}, or take --backend python"
        )
    if int(engine.version.split(".")[0]) < LEAST_TENSORRT:
        raise InputError(
            f"an engine of TensorRT {engine.version} has other dtypes than its program says; build it with TensorRT "
            f"{LEAST_TENSORRT} or later, or take --backend python"
        )
    signature = engine.program.signature
    if signature.cache is Cache.STATIC:
        raise InputError(
            "this engine writes its cache in place, at one address for past and present, and Triton's TensorRT backend "
            "gives each its own; build from dialect portable, or take --backend python"
        )
    config = _config(name, TENSORRT, kind="KIND_GPU")
    # The backend takes, for each call, the profile whose shapes fit best.
    config.instance_group[0].profile.extend(str(index) for index in range(len(engine.profiles)))
    config.platform = "tensorrt_plan"
    _describe(config, signature)
    return config


def _config(name: str, backend: str, *, kind: str) -> Any:
    """A model that Triton never batches: its rows have pasts of different lengths, which cannot be joined."""
    known = schema()
    config = known.ModelConfig(name=name, backend=backend, max_batch_size=0)
    config.instance_group.add(count=1, kind=known.ModelInstanceGroup.Kind.Value(kind))
    return config


def _describe(config: Any, signature: Signature) -> None:
    """Inputs and outputs of a program, in its own order."""
    sides: Iterable[tuple[tuple[TensorSpec, ...], Any]]
    sides = ((signature.inputs, config.input), (signature.outputs, config.output))
    for specs, entries in sides:
        for spec in specs:
            dims = [dim if isinstance(dim, int) else ANY for dim in spec.dims]
            _add(entries, spec.name, TRITON_DTYPES[spec.dtype], dims)


def _add(entries: Any, name: str, dtype: str, dims: list[int]) -> None:
    entries.add(name=name, data_type=schema().DataType.Value(f"TYPE_{dtype}"), dims=dims)


def _say(config: Any, parameters: Mapping[str, str]) -> None:
    for name, text in parameters.items():
        config.parameters[name].string_value = text
