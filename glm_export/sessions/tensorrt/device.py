"""Device memory and one stream of work on it, through PyTorch: what an engine reads and writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from glm_export.errors import EnvironmentMissingError
from glm_export.spec.dtypes import torch_name

Launch = Callable[[], None]


def address(tensor: torch.Tensor) -> int:
    """Where a tensor begins; ``data_ptr`` says nowhere of an empty one, and TensorRT wants an address all the same."""
    return int(tensor.untyped_storage().data_ptr() + tensor.storage_offset() * tensor.element_size())


class Device(Protocol):
    """Memory, a stream, and work captured to be launched again at once."""

    @property
    def stream(self) -> int:
        """The stream's handle."""

    def zeros(self, count: int, dtype: str) -> torch.Tensor:
        """A flat tensor of ``count`` zeros.

        Raises:
            EnvironmentMissingError: the memory is not there.
        """

    def put(self, tensor: torch.Tensor, array: NDArray[Any]) -> None:
        """Copy an array of the tensor's size into it."""

    def get(self, tensor: torch.Tensor) -> NDArray[Any]:
        """Wait for the stream, and copy out; bfloat16 comes as float32."""

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Copy a tensor of the device into another of its size, behind the work that is on the stream."""

    def capture(self, launch: Launch) -> Launch:
        """Record what ``launch`` does; the result does it again."""

    def memory_in_use(self) -> int:
        """Bytes of it, by all processes."""

    def release(self) -> None:
        """Free what it keeps besides the tensors it gave out."""


class CudaDevice:
    """The current CUDA device of PyTorch."""

    def __init__(self) -> None:
        """Take a stream.

        Raises:
            EnvironmentMissingError: PyTorch cannot reach a GPU.
        """
        if not torch.cuda.is_available():
            raise EnvironmentMissingError(
                f"PyTorch {torch.__version__} cannot reach a GPU, and engines keep their memory in it; "
                "install PyTorch with CUDA (pytorch.org) in the range torch>=2.11,<2.14"
            )
        self._stream = torch.cuda.Stream()
        self._pinned: dict[tuple[int, torch.dtype], torch.Tensor] = {}
        self._in_flight: set[int] = set()

    @property
    def stream(self) -> int:
        """The stream's handle."""
        return int(self._stream.cuda_stream)

    def zeros(self, count: int, dtype: str) -> torch.Tensor:
        """A flat tensor of zeros, ready for work on the stream."""
        try:
            with torch.cuda.stream(self._stream):
                return torch.zeros(count, dtype=getattr(torch, torch_name(dtype)), device="cuda")
        except torch.OutOfMemoryError as error:
            free, total = torch.cuda.mem_get_info()
            raise EnvironmentMissingError(
                f"the GPU has {free / 1e9:.2f} of {total / 1e9:.2f} GB free, and {count:,} numbers of {dtype} do not "
                "fit; take fewer rows, or an engine of a smaller --max-context or a recipe"
            ) from error

    def put(self, tensor: torch.Tensor, array: NDArray[Any]) -> None:
        """Copy in, by way of pinned memory of the tensor's own: the stream goes on meanwhile."""
        if address(tensor) in self._in_flight:
            self._synchronize()
        pinned = self._staging(tensor)
        pinned.copy_(torch.from_numpy(np.require(array, requirements=["C", "W"])).view(tensor.shape))
        with torch.cuda.stream(self._stream):
            tensor.copy_(pinned, non_blocking=True)
        self._in_flight.add(address(tensor))

    def get(self, tensor: torch.Tensor) -> NDArray[Any]:
        """Copy out."""
        pinned = self._staging(tensor)
        with torch.cuda.stream(self._stream):
            pinned.copy_(tensor, non_blocking=True)
        self._synchronize()
        found: NDArray[Any] = (pinned.float() if pinned.dtype == torch.bfloat16 else pinned.clone()).numpy()
        return found

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Copy on the stream."""
        with torch.cuda.stream(self._stream):
            target.copy_(source)

    def _synchronize(self) -> None:
        self._stream.synchronize()
        self._in_flight.clear()

    def _staging(self, tensor: torch.Tensor) -> torch.Tensor:
        """Pinned memory for what lies at an address, as large as was ever asked for there."""
        key = (address(tensor), tensor.dtype)
        if key not in self._pinned or self._pinned[key].numel() < tensor.numel():
            self._pinned[key] = torch.empty(tensor.numel(), dtype=tensor.dtype, pin_memory=True)
        return self._pinned[key][: tensor.numel()].view(tensor.shape)

    def memory_in_use(self) -> int:
        """As the driver says."""
        free, total = torch.cuda.mem_get_info()
        return total - free

    def release(self) -> None:
        """Forget the pinned memory."""
        self._synchronize()
        self._pinned.clear()

    def capture(self, launch: Launch) -> Launch:
        """A CUDA graph. What the work touches must stay where it is while the graph is used."""
        graph = torch.cuda.CUDAGraph()
        self._stream.synchronize()
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            launch()

        def replay() -> None:
            with torch.cuda.stream(self._stream):
                graph.replay()

        return replay
