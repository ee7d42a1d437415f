"""What a session needs of a device: memory, one stream of work, work that is captured, copies that are waited for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from numpy.typing import NDArray

Launch = Callable[[], None]


def address(tensor: torch.Tensor) -> int:
    """Where a tensor begins; ``data_ptr`` says nowhere of an empty one, and TensorRT wants an address all the same."""
    return int(tensor.untyped_storage().data_ptr() + tensor.storage_offset() * tensor.element_size())


class Fetch(Protocol):
    """A copy out of the device that is under way."""

    def wait(self) -> torch.Tensor:
        """Until it has arrived: a tensor of the host, which the next fetch of the same slot writes over."""


class Device(Protocol):
    """Memory, a stream, and work captured to be launched again at once."""

    @property
    def stream(self) -> int:
        """The stream's handle."""

    @property
    def target(self) -> torch.device:
        """Where PyTorch's tensors lie."""

    def zeros(self, count: int, dtype: str) -> torch.Tensor:
        """A flat tensor of ``count`` zeros.

        Raises:
            EnvironmentMissingError: the memory is not there.
        """

    def pinned(self, count: int, dtype: str) -> torch.Tensor:
        """A flat tensor of ``count`` zeros in the host's memory, from which copies need not be waited for."""

    def put(self, tensor: torch.Tensor, array: NDArray[Any]) -> None:
        """Copy an array of the tensor's size into it."""

    def get(self, tensor: torch.Tensor) -> NDArray[Any]:
        """Wait for the stream, and copy out; floats of 16 bits come as float32."""

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Copy a tensor of the device, or pinned, into one of the device, behind the work that is on the stream."""

    def clear(self, tensor: torch.Tensor) -> None:
        """Fill a tensor of the device with zeros, behind the work that is on the stream."""

    def fetch(self, tensor: torch.Tensor, slot: int) -> Fetch:
        """Begin to copy a small tensor out, behind the work that is on the stream."""

    def on_stream(self) -> AbstractContextManager[Any]:
        """PyTorch's operators within are work on the stream."""

    def synchronize(self) -> None:
        """Wait until the stream has done its work."""

    def capture(self, launch: Launch) -> Launch:
        """Record what ``launch``, a library's call without PyTorch's memory, puts on the stream; the result repeats it.

        Raises:
            EnvironmentMissingError: it cannot be captured; the stream is as it was.
        """

    def record(self, work: Launch) -> Launch:
        """As :meth:`capture` for PyTorch's operators, which are run once before; the result repeats them."""

    def free_memory(self) -> int:
        """Bytes that could be taken."""

    def memory_in_use(self) -> int:
        """Bytes in use, by all processes."""

    def release(self) -> None:
        """Free what it keeps besides the tensors it gave out."""
