"""An engine without TensorRT: its calls, answered by ONNX Runtime over the program the engine would be built of.

It shows what the session does with TensorRT's interface: shapes, addresses, profiles, caches written in place, work
captured and launched again. What it cannot show is TensorRT itself: numbers, kernels, speed; that needs a GPU.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from glm_export.artifacts.engine import BuiltOn, Compatibility, Engine
from glm_export.artifacts.program import OnnxProgram
from glm_export.engines import vendor
from glm_export.engines.profiles import profiles_of, resolve_limits
from glm_export.sessions.tensorrt.session import EngineSession
from glm_export.sessions.tensorrt.step import LoadedEngine
from glm_export.spec.dtypes import TABLE
from glm_export.spec.optimization_profile import OptimizationProfile
from glm_export.spec.signature import BATCH, LOGITS, Cache
from tests.helpers.host_device import HostDevice

STEP_BYTES = {"weights": 1000, "row": 10}
"""What a build would have found."""
SCRATCH = (512, 4096)
"""Bytes the profiles would need."""


class StandInContext:
    """An execution context, strict where TensorRT is.

    As TensorRT it answers False to what it will not have. What TensorRT leaves undefined raises: a call out of order,
    scratch too small or in use, a profile another context has, a context changed under a recorded graph.
    """

    def __init__(self, engine: StandInEngine) -> None:
        self._engine = engine
        self._profile: OptimizationProfile | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._memory = 0
        self._changes = 0
        self.nvtx_verbosity: Any = None

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        if index in self._engine.profiles_in_use and not self._engine.profile_sharing:
            raise RuntimeError(f"profile {index} is in use by another context")
        self._engine.profiles_in_use.add(index)
        self._profile = self._engine.profiles[index]
        self._needed = max(SCRATCH[index], self._engine.device_memory_size_v2)
        return stream == self._engine.device.stream

    def set_device_memory(self, pointer: int, size: int) -> None:
        assert self._profile is not None, "scratch before the profile that says how much"
        assert pointer
        self._memory = size

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        assert self._profile is not None, "a shape before the profile"
        self._changes += 1
        least, _, most = self._profile.shapes[name]
        self._shapes[name] = tuple(shape)
        return len(shape) == len(most) and all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))

    def set_tensor_address(self, name: str, pointer: int) -> bool:
        self._changes += 1
        self._addresses[name] = pointer
        return pointer != 0

    def is_stream_capturable(self, stream: int) -> bool:
        return stream == self._engine.device.stream

    def execute_async_v3(self, stream: int) -> bool:
        if self._memory < self._needed:
            raise RuntimeError(f"scratch of {self._memory} bytes, and {self._needed} are needed")
        if stream != self._engine.device.stream:
            return False
        shapes, addresses, changes = dict(self._shapes), dict(self._addresses), self._changes
        if self._engine.device.recording is None:
            self._engine.compute(shapes, addresses)
            # Whatever this call did to the context, a graph of it was recorded before.
            self._changes += 1
            return True

        def replayed() -> None:
            if self._changes != changes:
                raise RuntimeError("a graph is launched whose context was used otherwise since it was recorded")
            self._engine.compute(shapes, addresses)

        self._engine.device.recording.append(replayed)
        return True


class StandInEngine:
    """An engine of a program: ONNX Runtime reads and writes at the addresses it is given."""

    def __init__(self, program: OnnxProgram, profiles: Sequence[OptimizationProfile], device: HostDevice) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.device, self.profiles = device, profiles
        self.calls: list[tuple[int, ...]] = []
        self.graphs: Any = None
        self.profiles_in_use: set[int] = set()
        # As from TensorRT 10 on; before, a profile belonged to one context.
        self.profile_sharing = True
        self.device_memory_size_v2 = max(SCRATCH)
        self._signature = program.signature
        self._session = onnxruntime.InferenceSession(str(program.model_path), options, ["CPUExecutionProvider"])
        self.num_optimization_profiles = len(profiles)

    def get_tensor_dtype(self, name: str) -> Any:
        specs = (*self._signature.inputs, *self._signature.outputs)
        dtype = next(spec.dtype for spec in specs if spec.name == name)
        return getattr(vendor.load(vendor.TENSORRT_RTX).module.DataType, TABLE[dtype].tensorrt)

    def get_device_memory_size_for_profile_v2(self, index: int) -> int:
        return SCRATCH[index]

    def create_runtime_config(self) -> StandInConfig:
        return StandInConfig()

    def create_execution_context(self, made_with: Any) -> StandInContext:
        """With a configuration, or with a strategy alone."""
        if isinstance(made_with, StandInConfig):
            assert made_with.cache is not None
            self.graphs = made_with.cuda_graph_strategy
        else:
            assert made_with.name == "USER_MANAGED"
        return StandInContext(self)

    def compute(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        """Read every input where it lies, run, write every output."""
        feeds = {}
        for spec in self._signature.inputs:
            feeds[spec.name] = _at(addresses[spec.name], shapes[spec.name], spec.dtype).copy()
            if spec.is_cache and self._signature.cache is Cache.STATIC:
                present = spec.name.replace("past_key_values", "present")
                assert addresses[present] == addresses[spec.name], f"{present} is not bound to its past"
        self.calls.append(feeds["input_ids"].shape)
        names = [spec.name for spec in self._signature.outputs]
        for spec, output in zip(self._signature.outputs, self._session.run(names, feeds), strict=True):
            _at(addresses[spec.name], output.shape, spec.dtype)[...] = output

    def logits(self, addresses: dict[str, int], rows: int) -> NDArray[Any]:
        """The last token's, where they lie."""
        spec = next(spec for spec in self._signature.outputs if spec.name == LOGITS)
        return _at(addresses[LOGITS], spec.shape(**{BATCH: rows}), spec.dtype)


class StandInConfig:
    """A runtime configuration with a cache of kernels."""

    def __init__(self) -> None:
        self.cache: Any = None
        self.cuda_graph_strategy: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        assert strategy.name == "USER_MANAGED"

    def create_runtime_cache(self) -> StandInKernels:
        return StandInKernels()

    def set_runtime_cache(self, cache: Any) -> None:
        self.cache = cache


class StandInKernels:
    """Compiled kernels: some bytes."""

    def __init__(self) -> None:
        self.loaded: bytes | None = None

    def deserialize(self, blob: bytes) -> bool:
        self.loaded = blob
        return True

    def serialize(self) -> bytes:
        return b"kernels"


def _at(pointer: int, shape: Sequence[int], dtype: str) -> NDArray[Any]:
    kind = np.dtype(dtype)
    if not math.prod(shape):
        return np.empty(shape, kind)
    memory = (ctypes.c_uint8 * (math.prod(shape) * kind.itemsize)).from_address(pointer)
    return np.ctypeslib.as_array(memory).view(kind).reshape(shape)


def stand_in_session(
    program: OnnxProgram, *, max_batch: int = 4, prefill_tokens: int | None = None, prefill_batch: int | None = None,
    cuda_graph: bool = True, runtime: str = vendor.TENSORRT, streamed: bool = False,
) -> tuple[EngineSession, StandInEngine]:  # fmt: skip
    """A session over a stand-in for the engine of a program."""
    limits = resolve_limits(
        program.signature, program.config.max_positions, max_batch=max_batch, prefill_tokens=prefill_tokens,
        prefill_batch=prefill_batch,
    )  # fmt: skip
    # In a built engine's order.
    profiles = tuple(reversed(profiles_of(program.signature, limits)))
    engine = Engine(
        folder=program.folder, program=program, runtime=runtime, version="0", limits=limits,
        profiles=profiles, built_on=BuiltOn(system="Linux"), compatibility=Compatibility(),
        manifest={"step_bytes": STEP_BYTES},
    )  # fmt: skip
    device = HostDevice()
    made = StandInEngine(program, profiles, device)
    # Of TensorRT the names are wanted alone, and TensorRT-RTX, which is a package, has them.
    tensorrt = replace(vendor.load(vendor.TENSORRT_RTX), name=runtime)
    loaded = LoadedEngine(tensorrt=tensorrt, runtime=None, engine=made, device=device, streamed=streamed)
    return EngineSession(engine, loaded, cuda_graph=cuda_graph), made
