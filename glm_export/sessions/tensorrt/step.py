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
from glm_export.sessions.device.device import Device, Launch, address
from glm_export.sessions.device.input_block import InputBlock, Room
from glm_export.sessions.device.loop_step import LoopStep
from glm_export.sessions.session import Tensors
from glm_export.sessions.tensorrt.kernel_cache import KernelCache
from glm_export.spec.dtypes import FROM_TENSORRT
from glm_export.spec.optimization_profile import OptimizationProfile
from glm_export.spec.signature import BATCH, INPUT_IDS, LOGITS, SEQUENCE, Signature


class EnqueueError(EnvironmentMissingError):
    """The runtime could not run a step. What is on the device is not known any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedEngine:
    """An engine in device memory, the library that runs it, and the device. ``runtime`` must outlive ``engine``.

    ``streamed``: weights are fetched from the host in every step, which then cannot be captured.
    """

    tensorrt: TensorRT
    runtime: Any
    engine: Any
    device: Device
    streamed: bool = False


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
        self._set_profile(index)
        if loaded.tensorrt.find("IExecutionContext.set_device_memory") is not None:
            context.set_device_memory(scratch.data_ptr(), scratch.numel())
        else:
            context.device_memory = scratch.data_ptr()
        self._inputs = [spec.name for spec in signature.inputs if not spec.is_cache]
        self._logits = next(spec for spec in signature.outputs if spec.name == LOGITS)
        self._block = InputBlock(
            loaded.device, {name: Room(profile.shapes[name][2], self._dtype(name)) for name in self._inputs}
        )
        rows, tokens = profile.shapes[INPUT_IDS][2]
        count = math.prod(self._logits.shape(**{BATCH: rows, SEQUENCE: tokens}))
        self._put_out = loaded.device.zeros(count, self._dtype(LOGITS))
        for name, tensor in (*self._block.tensors.items(), (LOGITS, self._put_out)):
            self._address(name, tensor)
        self._recorded: CapturedGraph | None = None
        self._capturable = not loaded.streamed

    def _set_profile(self, index: int) -> None:
        loaded = self._loaded
        try:
            done = self._context.set_optimization_profile_async(index, loaded.device.stream)
        except RuntimeError as error:  # TensorRT's bindings raise it where the profile is refused
            done = False
            loaded.tensorrt.log.errors.append(str(error))
        if not done:
            raise EnvironmentMissingError(
                f"profile {self._profile.name} cannot be set: {loaded.tensorrt.log.reason}; "
                "build the engine again on this machine"
            )
        if loaded.tensorrt.find("ProfilingVerbosity.NONE") is not None:
            # Builds keep every layer's name, to be inspected; a range for each of them at every step is for profilers.
            self._context.nvtx_verbosity = loaded.tensorrt.module.ProfilingVerbosity.NONE

    def _dtype(self, name: str) -> str:
        """As the engine has it: TensorRT 8.6 makes 64-bit integers 32-bit ones."""
        return FROM_TENSORRT[self._loaded.engine.get_tensor_dtype(name).name]

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
            EnqueueError: TensorRT could not run it.
        """
        self._loaded.tensorrt.log.clear()
        shape = arrays[INPUT_IDS].shape
        if not (capture and self._is_recorded(shape, caches)):
            # Whatever the context did last, a graph of it is not to be launched behind what it does now.
            self.reset()
            for name in self._inputs:
                self._shape(name, arrays[name].shape)
            self._bind(caches)
        self._block.put(arrays)
        self._launch(shape, caches, capture=capture)
        return self._logits_of(shape)

    def loop(self, arrays: Tensors, caches: Sequence[CachePair], *, capture: bool) -> LoopStep:
        """A decode step to be launched again and again, over inputs that begin as these and change on the device.

        Raises:
            InputError: a shape lies outside the profile.
        """
        shape = arrays[INPUT_IDS].shape
        if not self._is_recorded(shape, caches):
            self.reset()
            for name in self._inputs:
                self._shape(name, arrays[name].shape)
            self._bind(caches)
        self._block.put(arrays)
        return LoopStep(
            device=self._loaded.device,
            inputs={name: self._block.view(name, arrays[name].shape) for name in self._inputs},
            logits=self._logits_of(shape),
            launch=lambda: self._launch(shape, caches, capture=capture),
        )

    def reset(self) -> None:
        """Give up what was recorded, and the caches it kept."""
        self._recorded = None

    def _is_recorded(self, shape: tuple[int, ...], caches: Sequence[CachePair]) -> bool:
        recorded = self._recorded
        return recorded is not None and recorded.caches is caches and recorded.shape == shape

    def _logits_of(self, ids_shape: tuple[int, ...]) -> torch.Tensor:
        rows, tokens = ids_shape
        shape = self._logits.shape(**{BATCH: rows, SEQUENCE: tokens})
        return self._put_out[: math.prod(shape)].view(shape)

    def _launch(self, shape: tuple[int, ...], caches: Sequence[CachePair], *, capture: bool) -> None:
        if self._recorded is not None:
            # Shapes and addresses are the recorded ones: only what lies there is new.
            self._recorded.replay()
            return
        self._execute()
        if capture and self._capturable:
            self._record(shape, caches)

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
        try:
            device = self._loaded.device
            find, context = self._loaded.tensorrt.find, self._context
            if find("IExecutionContext.is_stream_capturable") and not context.is_stream_capturable(device.stream):
                raise EnvironmentMissingError(f"{self._loaded.tensorrt.name} has work that cannot be captured")
            replay = device.capture(self._execute)
        except EnvironmentMissingError as error:
            # What this step was asked for is done; those after it are launched one kernel after another.
            self._capturable = False
            logging.getLogger(__name__).warning(
                "steps run without a CUDA graph, which could not be captured: %s", error
            )
        else:
            self._recorded = CapturedGraph(shape=shape, caches=caches, replay=replay)

    def _execute(self) -> None:
        if not self._context.execute_async_v3(self._loaded.device.stream):
            raise EnqueueError(
                f"{self._loaded.tensorrt.name} could not run profile {self._profile.name}: "
                f"{self._loaded.tensorrt.log.reason}"
            )


def contexts(
    loaded: LoadedEngine, activations: Sequence[int], kernels: KernelCache | None = None, *, cuda_graph: bool = True
) -> tuple[list[Any], torch.Tensor]:
    """An execution context for each profile, over one block of scratch: they never run at the same time.

    By itself each context would reserve what the largest profile needs.

    Args:
        loaded: the engine.
        activations: bytes each profile needs.
        kernels: compiled before, for TensorRT-RTX.
        cuda_graph: TensorRT-RTX captures by itself, once the kernels for a shape are compiled: our own capture would
            keep those it falls back to until then.

    Returns:
        The contexts, and their memory.

    Raises:
        EnvironmentMissingError: device memory is short.
    """
    tensorrt = loaded.tensorrt
    made = [_context(loaded, kernels, cuda_graph=cuda_graph) for _ in activations]
    if any(context is None for context in made):
        raise EnvironmentMissingError(
            f"{tensorrt.name} {tensorrt.version} made no execution context: {tensorrt.log.reason}; "
            "free device memory, or build with smaller limits"
        )
    needed = [*activations]
    if tensorrt.find("ICudaEngine.device_memory_size_v2") is not None:
        # Of streamed weights it holds the staging, too.
        needed.append(int(loaded.engine.device_memory_size_v2))
    return made, loaded.device.zeros(max(1, *needed), "uint8")


def _context(loaded: LoadedEngine, kernels: KernelCache | None, *, cuda_graph: bool) -> Any:
    tensorrt, engine = loaded.tensorrt, loaded.engine
    strategy = tensorrt.find("ExecutionContextAllocationStrategy.USER_MANAGED")
    if strategy is None:
        return engine.create_execution_context_without_device_memory()
    if kernels is None:
        return engine.create_execution_context(strategy)
    graphs = tensorrt.find(f"CudaGraphStrategy.{'WHOLE_GRAPH_CAPTURE' if cuda_graph else 'DISABLED'}")
    return engine.create_execution_context(kernels.runtime_config(engine, strategy, graphs))
