"""Keys and values inside ONNX Runtime, from one call to the next: one class for each kind of cache.

Shapes: B batch, K key-value heads, P past columns, L columns reserved, D head size.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from glm_export.artifacts.initial_cache import InitialCache
from glm_export.inputs.feeds import Ids
from glm_export.sessions.kv_cache import KvCache, Part, RowValues, put
from glm_export.spec.signature import LOGITS, Cache, Signature

# Room for an answer of usual length; doubled when it is full.
FIRST_ROOM = 256
HostArray = NDArray[Any]


class OrtCache(KvCache[HostArray]):
    """The cache of one batch, to be bound as past and present. Rows come and go by way of the host."""

    def __init__(
        self,
        signature: Signature,
        device: str,
        *,
        capacity: int | None = None,
        moving: Callable[[], None] | None = None,
        initial: InitialCache | None = None,
    ) -> None:
        super().__init__(signature, capacity=capacity, moving=moving, initial=initial)
        self._device = device
        self._values: list[onnxruntime.OrtValue] = []

    def binding(self, runtime: onnxruntime.InferenceSession) -> onnxruntime.IOBinding:
        """A binding of logits, past and present; the other inputs are the caller's."""
        binding = runtime.io_binding()
        binding.bind_output(LOGITS, "cpu")  # first: outputs come back in the order they were bound
        self.bind(binding)
        return binding

    @abstractmethod
    def bind(self, binding: onnxruntime.IOBinding) -> None:
        """Bind past and present."""

    @abstractmethod
    def take(self, presents: list[onnxruntime.OrtValue]) -> None:
        """What the call put out, logits left aside."""

    def _zeros(self, index: int, rows: int, width: int) -> HostArray:
        return np.zeros(self._shape(index, rows, width), np.dtype(self._specs[index].dtype))

    def _value(self, array: HostArray) -> onnxruntime.OrtValue:
        return onnxruntime.OrtValue.ortvalue_from_numpy(array, self._device)

    def _held(self, index: int) -> HostArray:
        array: HostArray = self._values[index].numpy()
        return array

    def _hold(self, index: int, rows: int, width: int, parts: Sequence[Part[HostArray]]) -> None:
        put(self._values, index, self._value(self._filled(index, rows, width, parts)))

    def _filled(self, index: int, rows: int, width: int, parts: Sequence[Part[HostArray]]) -> HostArray:
        new = self._zeros(index, rows, width)
        for part in parts:
            new[part.row, :, part.columns] = part.values
        return new

    def _own(self, index: int, values: NDArray[Any]) -> HostArray:
        return values.astype(np.dtype(self._specs[index].dtype), copy=False)

    def _copy(self, part: HostArray) -> HostArray:
        copied: HostArray = part.copy()
        return copied

    def _free(self) -> None:
        self._values = []


class Growing(OrtCache):
    """Each call's present is the next one's past, handed on without copying by us; the program concatenates."""

    def bind(self, binding: onnxruntime.IOBinding) -> None:
        """Presents are left to the runtime to allocate."""
        for spec, value in zip(self._specs, self._values, strict=True):
            binding.bind_ortvalue_input(spec.name, value)
        for name in self._presents:
            binding.bind_output(name, self._device)

    def take(self, presents: list[onnxruntime.OrtValue]) -> None:
        """They are the next past."""
        self._values = presents

    def _width(self, columns: int) -> int:
        return columns

    def _reserve(self, rows: int, columns: int) -> None:  # noqa: ARG002 - it grows by itself
        self._values = []
        for index in range(len(self._specs)):
            self._hold(index, rows, self.prefix, self._beginnings(index, rows))


class InPlace(OrtCache):
    """One buffer ``[B, K, L, D]`` is past and present: no copy for a token. ``reserved`` is L.

    L is the program's own where its cache is static; otherwise it doubles when a sequence outgrows it, up to the
    context.
    """

    def __init__(
        self,
        signature: Signature,
        device: str,
        *,
        capacity: int,
        moving: Callable[[], None] | None = None,
        initial: InitialCache | None = None,
    ) -> None:
        super().__init__(signature, device, capacity=capacity, moving=moving, initial=initial)
        self._context, self.reserved, self.reserved_rows = capacity, 0, 0
        self._least_rows = 0
        self._bindings: dict[int, onnxruntime.IOBinding] = {}

    def reserve_rows(self, rows: int) -> None:
        """Buffers made from now on have room for so many rows: one that joins or leaves moves nobody else's."""
        self._least_rows = rows

    def make_room(self, columns: int) -> None:
        """Double the columns where they do not suffice; what is in stays."""
        super().make_room(columns)
        if columns > self.reserved:
            self._place(range(self.rows), self.lengths, room=columns)

    def binding(self, runtime: onnxruntime.InferenceSession) -> onnxruntime.IOBinding:
        """The same from call to call, while the buffers are."""
        if self.rows not in self._bindings:
            self._bindings[self.rows] = super().binding(runtime)
        return self._bindings[self.rows]

    def bind(self, binding: onnxruntime.IOBinding) -> None:
        """The same memory on both sides: ``[B, K, L, D]``, of rows in use."""
        if self.rows != self.reserved_rows:
            self.bind_rows(binding, 0, self.rows)
            return
        # Whole buffers are kept by who has them bound.
        for spec, name, value in zip(self._specs, self._presents, self._values, strict=True):
            binding.bind_ortvalue_input(spec.name, value)
            binding.bind_ortvalue_output(name, value)

    def bind_rows(self, binding: onnxruntime.IOBinding, first: int, rows: int) -> None:
        """The same memory on both sides, of some rows: ``[rows, K, L, D]``."""
        for spec, name, value in zip(self._specs, self._presents, self._values, strict=True):
            row_shape, kind = value.shape()[1:], np.dtype(spec.dtype)
            place = value.data_ptr() + first * math.prod(row_shape) * kind.itemsize
            for bind, bound in ((binding.bind_input, spec.name), (binding.bind_output, name)):
                bind(bound, self._device, 0, kind, [rows, *row_shape], place)

    def take(self, presents: list[onnxruntime.OrtValue]) -> None:
        """Nothing: they are where they were."""

    def _width(self, columns: int) -> int:
        if self.kind is Cache.STATIC:
            return self._context
        if columns <= self.reserved:
            return self.reserved
        room = max(columns, 2 * self.reserved) if self.reserved else columns + FIRST_ROOM
        if self._device != "cpu":
            # Few widths: each is captured by itself.
            room = 1 << (room - 1).bit_length()
        return min(self._context, room)

    def _reserve(self, rows: int, columns: int) -> None:
        """For the prompt and an answer. On a device, buffers that suffice stay where captured steps know them."""
        if self._device != "cpu" and rows == self.reserved_rows and columns <= self.reserved:
            for index, value in enumerate(self._values):
                value.update_inplace(self._filled(index, rows, self.reserved, self._beginnings(index, rows)))
            return
        self.clear()
        width = self._width(columns)
        for index in range(len(self._specs)):
            self._hold(index, rows, width, self._beginnings(index, rows))

    def _hold(self, index: int, rows: int, width: int, parts: Sequence[Part[HostArray]]) -> None:
        rows = max(rows, self._least_rows)
        super()._hold(index, rows, width, parts)
        self.reserved, self.reserved_rows = width, rows
        self._bindings.clear()

    def _free(self) -> None:
        super()._free()
        self.reserved = self.reserved_rows = 0
        self._bindings.clear()

    def _place(
        self, kept: Sequence[int], lengths: Ids, joining: Sequence[RowValues[HostArray]] = (), *, room: int = 0
    ) -> None:
        """As for every cache; where the buffers suffice, only rows that change their place are moved."""
        after = np.concatenate([lengths, np.array([max(row.length, self.prefix) for row in joining], np.int64)])
        columns = int(after.max(initial=0))
        least = 0 if self._least_rows else 1
        fits = least <= len(after) <= self.reserved_rows and max(columns, room) <= self.reserved
        if not fits or not self.own_lengths or self._device != "cpu":
            super()._place(kept, lengths, joining, room=room)
            return
        self._require(columns)
        self._move()
        for index in range(len(self._specs)):
            held = self._held(index)
            moved = [(at, held[row, :, : lengths[at]].copy()) for at, row in enumerate(kept) if at != row]
            for at, values in moved:
                held[at, :, : values.shape[1]] = values
            beginnings = self._beginnings(index, len(joining))
            for at, row in enumerate(joining):
                place = held[len(kept) + at]
                for part in beginnings[at : at + 1]:
                    place[:, part.columns] = part.values
                if row.arrays:
                    place[:, self.prefix : row.length] = row.arrays[index]
        self.lengths = after


def ort_cache(
    signature: Signature,
    device: str,
    context: int,
    moving: Callable[[], None] | None = None,
    initial: InitialCache | None = None,
) -> Growing | InPlace:
    """The cache a program of this signature works on; every row begins with ``initial``."""
    if signature.cache is Cache.GROWING:
        return Growing(signature, device, moving=moving, initial=initial)
    capacity = signature.static_length if signature.cache is Cache.STATIC else context
    return InPlace(signature, device, capacity=capacity, moving=moving, initial=initial)
