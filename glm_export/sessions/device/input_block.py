"""A call's inputs in one block of device memory, filled by one copy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from glm_export.sessions.device.device import Device
from glm_export.spec.dtypes import torch_name

ALIGNMENT = 256
"""Bytes: what TensorRT wants of an address, and cudaMalloc gives."""


@dataclass(frozen=True, slots=True)
class Room:
    """What one input can be at most: its shape, and its dtype as the runtime has it."""

    shape: Sequence[int]
    dtype: str


class InputBlock:
    """Inputs side by side. Each stays at its address; what is copied is all of them at once.

    ``tensors``: by name, flat, each as large as it can be.
    """

    def __init__(self, device: Device, rooms: Mapping[str, Room]) -> None:
        """Take memory.

        Raises:
            EnvironmentMissingError: it is not there.
        """
        self._device = device
        kinds = {name: getattr(torch, torch_name(room.dtype)) for name, room in rooms.items()}
        places, end = {}, 0
        for name, room in rooms.items():
            size = max(1, math.prod(room.shape)) * kinds[name].itemsize
            places[name] = slice(end, end + size)
            end += -(-size // ALIGNMENT) * ALIGNMENT
        self._block, self._host = device.zeros(end, "uint8"), device.pinned(end, "uint8")
        self.tensors = {name: self._block[place].view(kinds[name]) for name, place in places.items()}
        self._arrays = {name: self._host[place].view(kinds[name]).numpy() for name, place in places.items()}

    def view(self, name: str, shape: Sequence[int]) -> torch.Tensor:
        """An input on the device, in the shape it has in a call."""
        return self.tensors[name][: math.prod(shape)].view(tuple(shape))

    def put(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Copy a call's inputs in, behind the work that is on the stream."""
        # The copy before may still be read from: then what it reads would change.
        self._device.synchronize()
        for name, held in self._arrays.items():
            array = arrays[name]
            np.copyto(held[: array.size].reshape(array.shape), array, casting="same_kind")
        self._device.copy(self._block, self._host)
