"""Keys and values on the device from one call of an engine to the next: one class for each kind of cache.

Shapes: B rows, K key-value heads, P past columns, S new ones, T = P + S, M columns of a static cache, D head size.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch

from glm_export.sessions.tensorrt.device import Device
from glm_export.sessions.tensorrt.step import CachePair
from glm_export.spec.signature import BATCH, PAST, TOTAL, Cache, Signature, TensorSpec, past_names, present_names


class EngineCache(ABC):
    """The cache of one batch."""

    def __init__(self, signature: Signature, layers: int, device: Device) -> None:
        names = [pair for layer in range(layers) for pair in zip(past_names(layer), present_names(layer), strict=True)]
        self._specs: list[tuple[TensorSpec, str]] = [(signature.input(past), present) for past, present in names]
        self._device = device
        self.rows = 0

    @abstractmethod
    def start(self, rows: int, columns: int) -> None:
        """Forget everything, for ``rows`` that will hold ``columns`` at most.

        Raises:
            EnvironmentMissingError: device memory is short.
        """

    @abstractmethod
    def pairs(self, past: int, new: int) -> list[CachePair]:
        """What a call with ``past`` columns before its ``new`` ones reads and writes, all rows."""

    @abstractmethod
    def written(self) -> None:
        """The call is done: what it wrote is the next one's past."""

    @abstractmethod
    def clear(self) -> None:
        """Free the memory."""


class StaticEngineCache(EngineCache):
    """Buffers ``[B, K, M, D]``, past and present at once. They stay where they are while the batch has as many rows.

    They begin as zeros: what a masked column holds is multiplied by nothing, and nothing times NaN would be NaN.
    """

    def __init__(self, signature: Signature, layers: int, device: Device) -> None:
        super().__init__(signature, layers, device)
        self._pairs: list[CachePair] = []

    def start(self, rows: int, columns: int) -> None:  # noqa: ARG002 - a static cache holds what it holds
        """Reserve; what an earlier batch of as many rows left behind is hidden by every mask."""
        if rows == self.rows:
            return
        self.clear()
        for spec, present in self._specs:
            shape = spec.shape(**{BATCH: rows})
            buffer = self._device.zeros(math.prod(shape), spec.dtype).view(shape)
            self._pairs.append(CachePair(past_name=spec.name, present_name=present, past=buffer, present=buffer))
        self.rows = rows

    def pairs(self, past: int, new: int) -> list[CachePair]:  # noqa: ARG002
        """All columns, whatever is in use."""
        return self._pairs

    def written(self) -> None:
        """Nothing: it is where it was."""

    def clear(self) -> None:
        """Free the memory."""
        self._pairs = []
        self.rows = 0


class GrowingEngineCache(EngineCache):
    """Two buffers a cache, in turn past and present, each large enough for the longest row."""

    def __init__(self, signature: Signature, layers: int, device: Device) -> None:
        super().__init__(signature, layers, device)
        self._buffers: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._capacity = 0
        self._turn = 0

    def start(self, rows: int, columns: int) -> None:
        """Reserve."""
        if rows != self.rows or columns > self._capacity:
            self.clear()
            for spec, _ in self._specs:
                count = math.prod(spec.shape(**{BATCH: rows, PAST: columns}))
                self._buffers.append((self._device.zeros(count, spec.dtype), self._device.zeros(count, spec.dtype)))
            self.rows, self._capacity = rows, columns
        self._turn = 0

    def pairs(self, past: int, new: int) -> list[CachePair]:
        """The columns in use, at the front of each buffer."""
        found = []
        for (spec, present), buffers in zip(self._specs, self._buffers, strict=True):
            before = spec.shape(**{BATCH: self.rows, PAST: past, TOTAL: past})
            after = spec.shape(**{BATCH: self.rows, PAST: past + new, TOTAL: past + new})
            reads, writes = buffers[self._turn], buffers[1 - self._turn]
            found.append(
                CachePair(
                    past_name=spec.name, present_name=present,
                    past=reads[: math.prod(before)].view(before), present=writes[: math.prod(after)].view(after),
                )
            )  # fmt: skip
        return found

    def written(self) -> None:
        """Turn them round."""
        self._turn = 1 - self._turn

    def clear(self) -> None:
        """Free the memory."""
        self._buffers = []
        self.rows = self._capacity = 0


def engine_cache(signature: Signature, layers: int, device: Device) -> EngineCache:
    """The cache a program of this signature works on."""
    kind = StaticEngineCache if signature.cache is Cache.STATIC else GrowingEngineCache
    return kind(signature, layers, device)
