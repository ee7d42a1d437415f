"""One optimization profile of an engine at work: an execution context, and memory for what goes in and comes out.

Shapes: B rows, S new tokens, P past columns, T columns put out, M columns of a static cache, V vocabulary.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from glm_export.engines.vendor import TensorRT
from glm_export.errors import EnvironmentMissingError, InputError
from glm_export.sessions.session import Tensors
from glm_export.sessions.tensorrt.device import Device, Launch, address
from glm_export.sessions.tensorrt.kernel_cache import KernelCache
from glm_export.spec.dtypes import FROM_TENSORRT
from glm_export.spec.optimization_profile import OptimizationProfile
from glm_export.spec.signature import BATCH, INPUT_IDS, LOGITS, SEQUENCE, Signature


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedEngine:
    """An engine in device memory, the library that runs it, and the device. ``runtime`` must outlive ``engine``."""

    tensorrt: TensorRT
    runtime: Any
    engine: Any
    device: Device


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePair:
    """One key or value cache: what a call reads, ``past`` ``[B, K, P, D]``, and where it writes, ``present``.

    A static cache is both at once: the same memory.
    """

    past_name: str
    present_name: str
    past: torch.Tensor
    present: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturedGraph:
    """A captured step, for ids of one shape over the caches of one list, which it keeps where they are."""

    shape: tuple[int, ...]
    caches: Sequence[CachePair]
    replay: Launch


class EngineStep:
    """A context fixed to one profile. Inputs and logits stay at one address from call to call."""

    def __init__(
        self,
        loaded: LoadedEngine,
        index: int,
        profile: OptimizationProfile,
        signature: Signature,
        context: Any,
        scratch: torch.Tensor,
    ) -> None:
        """Take an execution context and its scratch, and reserve memory for the profile's largest shapes.

        Raises:
            EnvironmentMissingError: device memory is short.
        """
        self._loaded, self._profile, self._context = loaded, profile, context
        self._dtypes = {spec.name: self._dtype(spec.name) for spec in (*signature.inputs, *signature.outputs)}
        if not context.set_optimization_profile_async(index, loaded.device.stream):
            raise EnvironmentMissingError(f"profile {profile.name} cannot be set: {loaded.tensorrt.log.reason}")
        if loaded.tensorrt.find("IExecutionContext.set_device_memory") is not None:
            context.set_device_memory(scratch.data_ptr(), scratch.numel())
        else:
            context.device_memory = scratch.data_ptr()
        self._inputs = [spec.name for spec in signature.inputs if not spec.is_cache]
        self._logits = next(spec for spec in signature.outputs if spec.name == LOGITS)
        self._buffers = {name: self._reserve(name, profile.shapes[name][2]) for name in self._inputs}
        rows, tokens = profile.shapes[INPUT_IDS][2]
        self._buffers[LOGITS] = self._reserve(LOGITS, self._logits.shape(**{BATCH: rows, SEQUENCE: tokens}))
        self._recorded: CapturedGraph | None = None
        self._capturable = True

    def _dtype(self, name: str) -> str:
        """As the engine has it: TensorRT 8.6 makes 64-bit integers 32-bit ones."""
        return FROM_TENSORRT[self._loaded.engine.get_tensor_dtype(name).name]

    def _reserve(self, name: str, shape: Sequence[int]) -> torch.Tensor:
        buffer = self._loaded.device.zeros(math.prod(shape), self._dtypes[name])
        self._address(name, buffer)
        return buffer

    def _address(self, name: str, tensor: torch.Tensor) -> None:
        if not self._context.set_tensor_address(name, address(tensor)):
            raise EnvironmentMissingError(f"{name} cannot be bound: {self._loaded.tensorrt.log.reason}")

    def run(self, arrays: Tensors, caches: Sequence[CachePair], *, capture: bool = False) -> torch.Tensor:
        """One call.

        Args:
            arrays: inputs other than the cache, by name.
            caches: bound in place of the last call's.
            capture: record a CUDA graph behind the call, and launch that while ids have the same shape and ``caches``
                is the same list.

        Returns:
            Logits ``[B, S or 1, V]`` on the device; the next call overwrites them.

        Raises:
            InputError: a shape lies outside the profile.
            EnvironmentMissingError: TensorRT could not run it.
        """
        self._loaded.tensorrt.log.clear()
        ids = arrays[INPUT_IDS]
        recorded = self._recorded if capture else None
        if recorded is not None and recorded.caches is caches and recorded.shape == ids.shape:
            # Shapes and addresses are the recorded ones: only what lies there is new.
            self._put(arrays)
            recorded.replay()
        else:
            for name in self._inputs:
                self._shape(name, arrays[name].shape)
            self._put(arrays)
            self._bind(caches)
            self._execute()
            if capture and self._capturable:
                self._record(ids.shape, caches)
        rows, tokens = ids.shape
        shape = self._logits.shape(**{BATCH: rows, SEQUENCE: tokens})
        return self._buffers[LOGITS][: math.prod(shape)].view(shape)

    def reset(self) -> None:
        """Give up what was recorded, and the caches it kept."""
        self._recorded = None

    def _put(self, arrays: Tensors) -> None:
        for name in self._inputs:
            array = arrays[name]
            self._loaded.device.put(self._buffers[name][: array.size].view(array.shape), array)

    def _bind(self, caches: Sequence[CachePair]) -> None:
        for pair in caches:
            self._shape(pair.past_name, tuple(pair.past.shape))
            self._address(pair.past_name, pair.past)
            self._address(pair.present_name, pair.present)

    def _shape(self, name: str, shape: tuple[int, ...]) -> None:
        if not self._context.set_input_shape(name, shape):
            least, _, most = self._profile.shapes[name]
            raise InputError(
                f"{name} {list(shape)} is outside profile {self._profile.name}, {list(least)} to {list(most)}; "
                "build with larger limits"
            )

    def _record(self, shape: tuple[int, ...], caches: Sequence[CachePair]) -> None:
        """Record a step like the one just run: in that TensorRT settled on its shapes."""
        self._recorded = None
        try:
            replay = self._loaded.device.capture(self._execute)
        except (RuntimeError, EnvironmentMissingError) as error:
            # What this step was asked for is done; those after it are launched one kernel after another.
            self._capturable = False
            logging.getLogger(__name__).warning(
                "steps run without a CUDA graph, which could not be captured: %s", error
            )
        else:
            self._recorded = CapturedGraph(shape=shape, caches=caches, replay=replay)

    def _execute(self) -> None:
        if not self._context.execute_async_v3(self._loaded.device.stream):
            raise EnvironmentMissingError(
                f"{self._loaded.tensorrt.name} could not run profile {self._profile.name}: "
                f"{self._loaded.tensorrt.log.reason}"
            )


def contexts(
    loaded: LoadedEngine, activations: Sequence[int], kernels: KernelCache | None = None
) -> tuple[list[Any], torch.Tensor]:
    """An execution context for each profile, over one block of scratch: they never run at the same time.

    By itself each context would reserve what the largest profile needs.

    Args:
        loaded: the engine.
        activations: bytes each profile needs.
        kernels: compiled before, for TensorRT-RTX.

    Returns:
        The contexts, and their memory.

    Raises:
        EnvironmentMissingError: device memory is short.
    """
    tensorrt = loaded.tensorrt
    made = [_context(loaded, kernels) for _ in activations]
    if any(context is None for context in made):
        raise EnvironmentMissingError(
            f"{tensorrt.name} {tensorrt.version} made no execution context: {tensorrt.log.reason}; "
            "free device memory, or build with smaller limits"
        )
    return made, loaded.device.zeros(max(1, *activations), "uint8")


def _context(loaded: LoadedEngine, kernels: KernelCache | None) -> Any:
    tensorrt, engine = loaded.tensorrt, loaded.engine
    strategy = tensorrt.find("ExecutionContextAllocationStrategy.USER_MANAGED")
    if strategy is None:
        return engine.create_execution_context_without_device_memory()
    if kernels is None:
        return engine.create_execution_context(strategy)
    return engine.create_execution_context(kernels.runtime_config(engine, strategy))
