"""Keys and values on the device from one call of an engine to the next: one class for each kind of cache.

Shapes: B rows, K key-value heads, P past columns, S new ones, T = P + S, M columns of a static cache, D head size.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from numpy.typing import NDArray

from glm_export.artifacts.initial_cache import InitialCache
from glm_export.sessions.device.device import Device
from glm_export.sessions.kv_cache import KvCache, Part, put
from glm_export.sessions.tensorrt.step import CachePair
from glm_export.spec.signature import Cache, Signature


class EngineCache(KvCache[torch.Tensor]):
    """The cache of one batch. Rows come and go on the device, in the order of its stream."""

    def __init__(
        self,
        signature: Signature,
        device: Device,
        *,
        capacity: int,
        moving: Callable[[], None] | None = None,
        initial: InitialCache | None = None,
    ) -> None:
        super().__init__(signature, capacity=capacity, moving=moving, initial=initial)
        self._longest = capacity
        self._device = device
        self._free()

    @abstractmethod
    def pairs(self, past: int, new: int) -> list[CachePair]:
        """What a call with ``past`` columns before its ``new`` ones reads and writes, all rows."""

    @abstractmethod
    def take(self) -> None:
        """The call is done: what it wrote is the next one's past."""

    def _width(self, columns: int) -> int:  # noqa: ARG002 - engines are built for so many
        return self._longest

    def _zeros(self, index: int, rows: int, width: int) -> torch.Tensor:
        """Flat, for ``[rows, K, width, D]``."""
        return self._device.zeros(math.prod(self._shape(index, rows, width)), self._specs[index].dtype)

    def _own(self, index: int, values: NDArray[Any]) -> torch.Tensor:
        part = self._device.zeros(values.size, self._specs[index].dtype).view(values.shape)
        self._device.put(part, values)
        return part

    def _copy(self, part: torch.Tensor) -> torch.Tensor:
        spec = self._specs[0]
        copied = self._device.zeros(max(1, part.numel()), spec.dtype)[: part.numel()].view(part.shape)
        self._device.copy(copied, part)
        return copied


class StaticEngineCache(EngineCache):
    """Buffers ``[B, K, M, D]``, past and present at once. They stay where they are while no row comes or goes.

    They begin as zeros: what a masked column holds is multiplied by nothing, and nothing times NaN would be NaN.
    """

    _pairs: list[CachePair]

    def pairs(self, past: int, new: int) -> list[CachePair]:  # noqa: ARG002
        """All columns, whatever is in use."""
        return self._pairs

    def take(self) -> None:
        """Nothing: it is where it was."""

    def _reserve(self, rows: int, columns: int) -> None:  # noqa: ARG002 - a static cache holds what it holds
        """Buffers of as many rows stay where captured steps know them, and are cleared.

        What an earlier batch left there is hidden by every mask; but a mask hides no NaN from a product with 0.
        """
        if rows == self.rows:
            for index, pair in enumerate(self._pairs):
                self._device.clear(pair.past)
                for part in self._beginnings(index, rows):
                    self._device.copy(pair.past[part.row, :, part.columns], part.values)
            return
        self.clear()
        for index in range(len(self._specs)):
            self._hold(index, rows, self._longest, self._beginnings(index, rows))

    def _held(self, index: int) -> torch.Tensor:
        return self._pairs[index].past

    def _hold(self, index: int, rows: int, width: int, parts: Sequence[Part[torch.Tensor]]) -> None:
        buffer = self._zeros(index, rows, width).view(self._shape(index, rows, width))
        for part in parts:
            self._device.copy(buffer[part.row, :, part.columns], part.values)
        past, present = self._specs[index].name, self._presents[index]
        put(self._pairs, index, CachePair(past_name=past, present_name=present, past=buffer, present=buffer))

    def _free(self) -> None:
        self._pairs = []


class GrowingEngineCache(EngineCache):
    """Two buffers a cache, in turn past and present, each large enough for the longest row."""

    _buffers: list[tuple[torch.Tensor, torch.Tensor]]
    _turn = 0

    def pairs(self, past: int, new: int) -> list[CachePair]:
        """The columns in use, at the front of each buffer."""
        return [
            CachePair(
                past_name=spec.name,
                present_name=present,
                past=self._front(buffers[self._turn], index, self.rows, past),
                present=self._front(buffers[1 - self._turn], index, self.rows, past + new),
            )
            for index, (spec, present, buffers) in enumerate(
                zip(self._specs, self._presents, self._buffers, strict=True)
            )
        ]

    def take(self) -> None:
        """Turn them round."""
        self._turn = 1 - self._turn

    def _front(self, buffer: torch.Tensor, index: int, rows: int, columns: int) -> torch.Tensor:
        shape = self._shape(index, rows, columns)
        return buffer[: math.prod(shape)].view(shape)

    def _reserve(self, rows: int, columns: int) -> None:  # noqa: ARG002 - as much as a row can hold
        if rows != self.rows:
            self.clear()
            for index in range(len(self._specs)):
                pair = (self._zeros(index, rows, self._longest), self._zeros(index, rows, self._longest))
                self._buffers.append(pair)
        self._turn = 0
        for index, (past, _) in enumerate(self._buffers):
            front = self._front(past, index, rows, self.prefix)
            for part in self._beginnings(index, rows):
                self._device.copy(front[part.row], part.values)

    def _held(self, index: int) -> torch.Tensor:
        return self._front(self._buffers[index][self._turn], index, self.rows, self.columns)

    def _hold(self, index: int, rows: int, width: int, parts: Sequence[Part[torch.Tensor]]) -> None:
        new = (self._zeros(index, rows, width), self._zeros(index, rows, width))
        columns = max((part.columns.stop for part in parts), default=0)
        front = self._front(new[self._turn], index, rows, columns)
        for part in parts:
            self._device.copy(front[part.row, :, part.columns], part.values)
        put(self._buffers, index, new)

    def _free(self) -> None:
        self._buffers = []


def engine_cache(
    signature: Signature,
    device: Device,
    longest: int,
    moving: Callable[[], None] | None = None,
    initial: InitialCache | None = None,
) -> EngineCache:
    """The cache a program of this signature works on.

    ``longest``: tokens a row of the engine can hold. ``initial``: what every row begins with.
    """
    kind = StaticEngineCache if signature.cache is Cache.STATIC else GrowingEngineCache
    return kind(signature, device, capacity=longest, moving=moving, initial=initial)
