"""An NVIDIA GPU's memory and one stream of work on it, through PyTorch: what an engine reads and writes."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from glm_export.errors import EnvironmentMissingError
from glm_export.machine.gpu import DEVICE
from glm_export.sessions.device.capture import Driver, StreamGraph, driver
from glm_export.sessions.device.device import Launch
from glm_export.spec.dtypes import torch_name

WARM_UP = 3
"""Calls before PyTorch captures: libraries set themselves up in the first ones (its own documentation)."""


class CudaFetch:
    """Pinned memory that is being filled, and the event behind that."""

    def __init__(self, pinned: torch.Tensor, event: torch.cuda.Event) -> None:
        self._pinned, self._event = pinned, event

    def wait(self) -> torch.Tensor:
        """The pinned memory."""
        self._event.synchronize()
        return self._pinned


class CudaDevice:
    """The one device there is for engines (``machine.gpu.DEVICE``)."""

    def __init__(self) -> None:
        """Take a stream.

        Raises:
            EnvironmentMissingError: PyTorch cannot reach a GPU, or works on another one, to which the runtime would
                load the engine.
        """
        if not torch.cuda.is_available():
            raise EnvironmentMissingError(
                f"PyTorch {torch.__version__} cannot reach a GPU, and engines keep their memory in it; "
                "install PyTorch with CUDA (pytorch.org) in the range torch>=2.11,<2.14"
            )
        self._index = torch.cuda.current_device()
        if self._index != DEVICE:
            raise EnvironmentMissingError(
                f"PyTorch's current device is cuda:{self._index}, and engines run on cuda:{DEVICE}; choose a GPU by "
                f"CUDA_VISIBLE_DEVICES={self._index} in place of torch.cuda.set_device"
            )
        self._stream = torch.cuda.Stream(self._index)
        self._staged: dict[tuple[torch.dtype, int], torch.Tensor] = {}
        self._slots: dict[tuple[torch.dtype, int, int], tuple[torch.Tensor, torch.cuda.Event]] = {}

    @property
    def stream(self) -> int:
        """The stream's handle."""
        return int(self._stream.cuda_stream)

    @property
    def target(self) -> torch.device:
        """The one device of this index."""
        return torch.device("cuda", self._index)

    @cached_property
    def _driver(self) -> Driver:
        return driver()

    def zeros(self, count: int, dtype: str) -> torch.Tensor:
        """A flat tensor of zeros, ready for work on the stream."""
        try:
            with self.on_stream():
                return torch.zeros(count, dtype=getattr(torch, torch_name(dtype)), device=self.target)
        except torch.OutOfMemoryError as error:
            free, total = torch.cuda.mem_get_info(self._index)
            raise EnvironmentMissingError(
                f"the GPU has {free / 1e9:.2f} of {total / 1e9:.2f} GB free, and {count:,} numbers of {dtype} do not "
                "fit; take fewer rows, or an engine of a smaller --max-context or a recipe"
            ) from error

    def pinned(self, count: int, dtype: str) -> torch.Tensor:
        """Page-locked."""
        return torch.zeros(count, dtype=getattr(torch, torch_name(dtype)), pin_memory=True)

    def put(self, tensor: torch.Tensor, array: NDArray[Any]) -> None:
        """Copy in, and wait: for what is not done at every step."""
        with self.on_stream():
            tensor.copy_(torch.from_numpy(np.require(array, requirements=["C", "W"])).view(tensor.shape))
        self.synchronize()

    def get(self, tensor: torch.Tensor) -> NDArray[Any]:
        """Copy out by way of pinned memory, one block for each size of a power of two."""
        pinned = self._staging(tensor)
        with self.on_stream():
            pinned.copy_(tensor, non_blocking=True)
        self.synchronize()
        # PyTorch widens 16 bits many times as fast as numpy does.
        found: NDArray[Any] = (pinned.float() if pinned.dtype in HALVES else pinned.clone()).numpy()
        return found

    def _staging(self, tensor: torch.Tensor) -> torch.Tensor:
        count = tensor.numel()
        key = (tensor.dtype, max(1, count - 1).bit_length())
        if key not in self._staged:
            self._staged[key] = torch.empty(1 << key[1], dtype=tensor.dtype, pin_memory=True)
        return self._staged[key][:count].view(tensor.shape)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Copy on the stream."""
        with self.on_stream():
            target.copy_(source, non_blocking=True)

    def clear(self, tensor: torch.Tensor) -> None:
        """On the stream."""
        with self.on_stream():
            tensor.zero_()

    def fetch(self, tensor: torch.Tensor, slot: int) -> CudaFetch:
        """Into pinned memory of the slot's own."""
        key = (tensor.dtype, tensor.numel(), slot)
        if key not in self._slots:
            pinned = torch.empty(tensor.numel(), dtype=tensor.dtype, pin_memory=True)
            self._slots[key] = (pinned, torch.cuda.Event())
        pinned, event = self._slots[key]
        with self.on_stream():
            pinned.copy_(tensor.view(-1), non_blocking=True)
            event.record(self._stream)
        return CudaFetch(pinned, event)

    def on_stream(self) -> AbstractContextManager[Any]:
        """Its device is the stream's."""
        return torch.cuda.stream(self._stream)

    def synchronize(self) -> None:
        """Wait for the stream."""
        self._stream.synchronize()

    def free_memory(self) -> int:
        """As the driver says."""
        return torch.cuda.mem_get_info(self._index)[0]

    def memory_in_use(self) -> int:
        """As the driver says."""
        free, total = torch.cuda.mem_get_info(self._index)
        return total - free

    def release(self) -> None:
        """Forget the pinned memory."""
        self.synchronize()
        self._staged.clear()
        self._slots.clear()

    def capture(self, launch: Launch) -> Launch:
        """A CUDA graph. What the work touches must stay where it is while the graph is used."""
        self.synchronize()
        return StreamGraph.captured(self._driver, self.stream, launch)

    def record(self, work: Launch) -> Launch:
        """A CUDA graph of PyTorch's, with its allocator: what the work allocates is the graph's own."""
        with self.on_stream():
            for _ in range(WARM_UP):
                work()
        self.synchronize()
        graph = torch.cuda.CUDAGraph()
        with self.on_stream():
            # Not by torch.cuda.graph, which collects garbage and empties the allocator's cache before each.
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                work()
            finally:
                graph.capture_end()

        def replay() -> None:
            with self.on_stream():
                graph.replay()

        return replay


HALVES = (torch.float16, torch.bfloat16)
