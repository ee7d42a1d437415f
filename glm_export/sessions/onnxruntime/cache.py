"""Keys and values inside ONNX Runtime, from one call to the next: one class for each kind of cache.

Shapes: B batch, K key-value heads, P past columns, L columns reserved, D head size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import onnxruntime

from glm_export.errors import InputError
from glm_export.spec.signature import (
    BATCH,
    CACHE_LENGTH_AXIS,
    LOGITS,
    PAST,
    Cache,
    Signature,
    TensorSpec,
    past_names,
    present_names,
)

NUMPY_DTYPES = {"float32": np.float32, "float16": np.float16, "int8": np.int8}
# Room for an answer of usual length; doubled when it is full.
FIRST_ROOM = 256


class Buffers(ABC):
    """The cache of one batch, to be bound as past and present."""

    def __init__(self, signature: Signature, layers: int, device: str) -> None:
        self._specs = [signature.input(name) for layer in range(layers) for name in past_names(layer)]
        self._present = [name for layer in range(layers) for name in present_names(layer)]
        self._device = device
        self._values: list[onnxruntime.OrtValue] = []

    @property
    def started(self) -> bool:
        """Whether a batch is in."""
        return bool(self._values)

    @abstractmethod
    def start(self, batch: int, columns: int) -> None:
        """Forget everything, for a batch whose first call reads ``columns`` tokens."""

    @abstractmethod
    def make_room(self, columns: int) -> None:
        """See that ``columns`` tokens a row, past and new, fit.

        Raises:
            InputError: they cannot.
        """

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

    def clear(self) -> None:
        """Free the memory."""
        self._values = []

    def _allocate(self, spec: TensorSpec, batch: int, columns: int) -> onnxruntime.OrtValue:
        dims = [*spec.dims]
        dims[CACHE_LENGTH_AXIS] = columns
        shape = TensorSpec(name=spec.name, dtype=spec.dtype, dims=tuple(dims)).shape(**{BATCH: batch, PAST: columns})
        zeros = np.zeros(shape, NUMPY_DTYPES[spec.dtype])
        return onnxruntime.OrtValue.ortvalue_from_numpy(zeros, self._device)


class Growing(Buffers):
    """Each call's present is the next one's past, handed on without copying by us; the program concatenates."""

    def start(self, batch: int, columns: int) -> None:  # noqa: ARG002
        """Empty pasts."""
        self._values = [self._allocate(spec, batch, 0) for spec in self._specs]

    def make_room(self, columns: int) -> None:
        """Always there."""

    def bind(self, binding: onnxruntime.IOBinding) -> None:
        """Presents are left to the runtime to allocate."""
        for spec, value in zip(self._specs, self._values, strict=True):
            binding.bind_ortvalue_input(spec.name, value)
        for name in self._present:
            binding.bind_output(name, self._device)

    def take(self, presents: list[onnxruntime.OrtValue]) -> None:
        """They are the next past."""
        self._values = presents


class InPlace(Buffers):
    """One buffer ``[B, K, L, D]`` is past and present: no copy for a token.

    L is the program's own where its cache is static; otherwise it doubles when a sequence outgrows it, up to the
    context.
    """

    def __init__(self, signature: Signature, layers: int, device: str, context: int) -> None:
        super().__init__(signature, layers, device)
        self._fixed = signature.cache is Cache.STATIC
        self._context = signature.static_length if self._fixed else context
        self.columns = 0
        self._binding: onnxruntime.IOBinding | None = None

    def start(self, batch: int, columns: int) -> None:
        """Reserve columns for the prompt and an answer."""
        self._require(columns)
        self.columns = self._context if self._fixed else min(self._context, columns + FIRST_ROOM)
        self._values = [self._allocate(spec, batch, self.columns) for spec in self._specs]
        self._binding = None

    def make_room(self, columns: int) -> None:
        """Double the columns where they do not suffice; what is in stays."""
        if columns <= self.columns:
            return
        self._require(columns)
        self.columns = min(self._context, max(columns, 2 * self.columns))
        self._binding = None
        for index, old in enumerate(self._values):
            kept = old.numpy()
            grown = np.zeros((*kept.shape[:2], self.columns, kept.shape[3]), kept.dtype)
            grown[:, :, : kept.shape[2]] = kept
            self._values[index] = onnxruntime.OrtValue.ortvalue_from_numpy(grown, self._device)

    def binding(self, runtime: onnxruntime.InferenceSession) -> onnxruntime.IOBinding:
        """The same from call to call, while the buffers are."""
        if self._binding is None:
            self._binding = super().binding(runtime)
        return self._binding

    def clear(self) -> None:
        """Free the memory."""
        super().clear()
        self._binding = None

    def _require(self, columns: int) -> None:
        if columns > self._context:
            what = "the program's static cache holds" if self._fixed else "the model's context is"
            raise InputError(f"{columns} tokens are wanted, {what} {self._context}; shorten the prompt")

    def bind(self, binding: onnxruntime.IOBinding) -> None:
        """The same memory on both sides."""
        for spec, name, value in zip(self._specs, self._present, self._values, strict=True):
            binding.bind_ortvalue_input(spec.name, value)
            binding.bind_ortvalue_output(name, value)

    def take(self, presents: list[onnxruntime.OrtValue]) -> None:
        """Nothing: they are where they were."""


def buffers(signature: Signature, layers: int, device: str, context: int) -> Buffers:
    """The cache a program of this signature works on."""
    if signature.cache is Cache.GROWING:
        return Growing(signature, layers, device)
    return InPlace(signature, layers, device, context)
