"""A checkpoint's parameters as a quantization wants them: smoothed, one at a time, and what was rounded beforehand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from glm_export.calibration.quantization import Quantization
from glm_export.checkpoints.checkpoint import Checkpoint
from glm_export.spec.weight_formats import EMBEDDING, HEAD

SHOWN_SOURCES = 3
Parts = Callable[[torch.dtype | None], Iterator[Tensor]]
"""Reads a parameter's parts one by one; what a checkpoint works out is rounded to the dtype, None leaves it float32."""


class SmoothedWeights:
    """Parameters by name, read when asked for; those no smoothing touches are views of the mapped file.

    ``quantization`` None: the checkpoint's own.
    """

    def __init__(self, checkpoint: Checkpoint, quantization: Quantization | None = None) -> None:
        self.checkpoint = checkpoint
        self._multiplied = dict(quantization.smoothing) if quantization else {}
        self._divided = quantization.folded(checkpoint.config) if quantization else {}
        self.rounded = quantization.rounded if quantization else None
        self._rules = {rule.target: rule for rule in checkpoint.weight_map.rules}

    def parts(self, name: str) -> Iterator[Tensor]:
        """One parameter, in slices of its leading axis where the checkpoint stacks them."""
        for part in self.checkpoint.parts(self._rules[name]):
            yield self._smoothed(name, part)

    def parameter(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """One parameter whole; what a checkpoint works out and nothing smooths is rounded to the dtype."""
        if name in self._multiplied or name in self._divided:
            return next(self.parts(name))
        return self.checkpoint.parameter(self._rules[name], dtype)

    def streamed(self, name: str, dtype: torch.dtype | None) -> Iterator[Tensor]:
        """As :meth:`parts`, for parts that are let go one by one: large ones that are worked out lie in a file."""
        changed = name in self._multiplied or name in self._divided
        for part in self.checkpoint.parts(self._rules[name], None if changed else dtype, spooled=True):
            yield self._smoothed(name, part)

    def sources(self) -> dict[str, tuple[Parts, str]]:
        """For every parameter, how to get its parts and what to call it in a message."""
        return {
            name: (partial(self.streamed, name), " + ".join(rule.sources[:SHOWN_SOURCES]))
            for name, rule in self._rules.items()
        }

    def linear(self, name: str) -> Tensor:
        """The weight of a linear layer; a tied head's is the embedding."""
        return self.parameter(EMBEDDING if name == HEAD and HEAD not in self._rules else name)

    def _smoothed(self, name: str, tensor: Tensor) -> Tensor:
        if name not in self._multiplied and name not in self._divided:
            return tensor
        smoothed = tensor.to(torch.float32, copy=True)
        if name in self._multiplied:
            smoothed.mul_(torch.from_numpy(self._multiplied[name]))
        for first, scales in self._divided.get(name, ()):
            divisor = torch.from_numpy(scales)
            smoothed[first:].div_(divisor if smoothed.dim() == 1 else divisor.unsqueeze(-1))
        return smoothed
