"""An ONNX file of fixed shapes as an engine of TensorRT or TensorRT-RTX, without a session around it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm_export.engines.network import Network
from glm_export.engines.vendor import TensorRT
from glm_export.errors import EnvironmentMissingError

Arrays = Mapping[str, NDArray[Any]]
DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "BOOL": "bool"}
"""TensorRT's names -> PyTorch's."""


def build_plan(tensorrt: TensorRT, model: Path | str, *, decompose: bool = False) -> Any:
    """A serialized engine.

    Args:
        tensorrt: the runtime.
        model: the file.
        decompose: attention may be built from several kernels.

    Raises:
        InputError: the parser refuses the file.
        EnvironmentMissingError: the builder gives up.
    """
    network = Network(tensorrt, Path(model))
    if decompose:
        network.allow_decomposition()
    config = network.builder.create_builder_config()
    # float32 means float32.
    config.clear_flag(tensorrt.module.BuilderFlag.TF32)
    plan = network.builder.build_serialized_network(network.network, config)
    if plan is None:
        raise EnvironmentMissingError(f"{tensorrt.name} {tensorrt.version} built nothing: {tensorrt.log.reason}")
    return plan


class RawEngine:
    """A plan loaded onto the GPU; inputs and outputs are numpy arrays, float32 where the engine's are narrower."""

    def __init__(self, tensorrt: TensorRT, plan: Any) -> None:
        """Load.

        Raises:
            EnvironmentMissingError: TensorRT will not have it here.
        """
        self._tensorrt = tensorrt
        self._runtime = tensorrt.module.Runtime(tensorrt.logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        self._context: Any = self._engine.create_execution_context() if self._engine is not None else None
        if self._context is None:
            raise EnvironmentMissingError(f"{tensorrt.name} {tensorrt.version} cannot load it: {tensorrt.log.reason}")

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """One call.

        Raises:
            EnvironmentMissingError: TensorRT did not run it.
        """
        import torch

        stream = torch.cuda.Stream()
        held, outputs = [], {}
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            dtype = getattr(torch, DTYPES[self._engine.get_tensor_dtype(name).name])
            if name in feeds:
                tensor = torch.from_numpy(np.ascontiguousarray(feeds[name])).to("cuda", dtype)
            else:
                outputs[name] = tensor = torch.empty(tuple(self._engine.get_tensor_shape(name)), dtype=dtype).cuda()
            held.append(tensor)
            self._context.set_tensor_address(name, tensor.data_ptr())
        torch.cuda.synchronize()
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise EnvironmentMissingError(f"{self._tensorrt.name} did not run it: {self._tensorrt.log.reason}")
        stream.synchronize()
        return {name: (one.float() if one.is_floating_point() else one).cpu().numpy() for name, one in outputs.items()}


def run_plan(tensorrt: TensorRT, plan: Any, feeds: Arrays) -> dict[str, NDArray[Any]]:
    """Load and run once."""
    return RawEngine(tensorrt, plan).run(feeds)
