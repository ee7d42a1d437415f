"""The host in place of a GPU: what sessions ask of a device, done at once, and as strict as CUDA is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from glm_export.sessions.device.cuda import WARM_UP
from glm_export.spec.dtypes import torch_name

MEMORY_IN_USE = 3 << 20


class HostDevice:
    """Host memory in place of a GPU's, and a stream that is always done. Work captured is kept, and done at a launch.

    Strict where CUDA is: nothing is put, copied, waited for or allocated while work is captured.
    """

    def __init__(self) -> None:
        self.stream = 7
        self.target = torch.device("cpu")
        self.free = 1 << 30
        self.captures = self.replays = self.records = 0
        self.recording: list[Callable[[], None]] | None = None

    def zeros(self, count: int, dtype: str) -> torch.Tensor:
        self._require_no_capture("memory is allocated")
        return torch.zeros(count, dtype=getattr(torch, torch_name(dtype)))

    def pinned(self, count: int, dtype: str) -> torch.Tensor:
        return self.zeros(count, dtype)

    def put(self, tensor: torch.Tensor, array: NDArray[Any]) -> None:
        self._require_no_capture("the host copies")
        tensor.copy_(torch.from_numpy(np.require(array, requirements=["C", "W"])).view(tensor.shape))

    def get(self, tensor: torch.Tensor) -> NDArray[Any]:
        self._require_no_capture("the host waits")
        return (tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor.clone()).numpy()

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        self._require_no_capture("the host copies")
        target.copy_(source)

    def clear(self, tensor: torch.Tensor) -> None:
        tensor.zero_()

    def fetch(self, tensor: torch.Tensor, slot: int) -> HostFetch:
        self._require_no_capture("the host copies")
        return HostFetch(tensor.clone())

    def on_stream(self) -> AbstractContextManager[None]:
        return nullcontext()

    def synchronize(self) -> None:
        self._require_no_capture("the host waits")

    def _require_no_capture(self, what: str) -> None:
        if self.recording is not None:
            raise RuntimeError(f"{what} while the stream is captured")

    def capture(self, launch: Callable[[], None]) -> Callable[[], None]:
        recorded: list[Callable[[], None]] = []
        self.recording = recorded
        try:
            launch()
        finally:
            self.recording = None
        self.captures += 1

        def replay() -> None:
            self.replays += 1
            for work in recorded:
                work()

        return replay

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """As PyTorch does: run some times to warm up, and not while it is captured."""
        for _ in range(WARM_UP):
            work()
        self.records += 1
        return work

    def free_memory(self) -> int:
        return self.free

    def memory_in_use(self) -> int:
        return MEMORY_IN_USE

    def release(self) -> None:
        """Nothing is kept."""


class HostFetch:
    """A copy that has arrived."""

    def __init__(self, copied: torch.Tensor) -> None:
        self._copied = copied

    def wait(self) -> torch.Tensor:
        return self._copied
