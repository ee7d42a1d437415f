"""TensorRT-RTX's ONNX parser and builder: both work on machines without a GPU; engines then cannot be run or read."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorrt_rtx_bindings as trt

from glm_export.signature import BATCH, PAST, SEQUENCE, TOTAL, Signature

LAYER_CLASSES = {
    "ROTARY_EMBEDDING": trt.IRotaryEmbeddingLayer,
    "KV_CACHE_UPDATE": trt.IKVCacheUpdateLayer,
    "ATTENTION_INPUT": trt.IAttentionInputLayer,
}


class _Errors(trt.ILogger):  # type: ignore[misc]
    """Keeps what goes wrong. A process has one logger: TensorRT ignores every later one."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.texts: list[str] = []

    def log(self, severity: trt.ILogger.Severity, text: str) -> None:
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            self.texts.append(text)


LOGGER = _Errors()


class RefusedError(Exception):
    """The parser or the builder would not; the message is its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One call: rows, new tokens of each, and tokens before them where the cache grows."""

    rows: int
    new: int
    past: int = 0

    def sizes(self) -> dict[str, int]:
        """Every symbol a signature may use."""
        return {BATCH: self.rows, SEQUENCE: self.new, PAST: self.past, TOTAL: self.past + self.new}


Profile = tuple[Load, Load, Load]
"""Least, usual and most of what an engine is built for."""
PREFILL: Profile = (Load(rows=1, new=1), Load(rows=1, new=32), Load(rows=2, new=64, past=64))
DECODE: Profile = (Load(rows=1, new=1), Load(rows=1, new=1, past=32), Load(rows=2, new=1, past=127))


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A serialized engine's size in bytes, and the seconds its building took."""

    size: int
    seconds: float


class Network:
    """What the parser makes of a program."""

    def __init__(self, model: Path) -> None:
        """Parse.

        Raises:
            RefusedError: the parser would not.
        """
        self._builder = trt.Builder(LOGGER)
        self._network = self._builder.create_network(0)
        self._parser = trt.OnnxParser(self._network, LOGGER)  # owns the weights: it must outlive the building
        if not self._parser.parse_from_file(str(model)):
            raise RefusedError("; ".join(self._parser.get_error(i).desc() for i in range(self._parser.num_errors)))

    def layers(self, kind: str) -> list[Any]:
        """Layers of a kind, e.g. ``ROTARY_EMBEDDING``, in their own class."""
        every = (self._network.get_layer(index) for index in range(self._network.num_layers))
        found = [layer for layer in every if layer.type.name == kind]
        for layer in found:
            layer.__class__ = LAYER_CLASSES.get(kind, layer.__class__)
        return found

    def counts(self) -> Counter[str]:
        """How often each kind of layer appears."""
        return Counter(self._network.get_layer(index).type.name for index in range(self._network.num_layers))

    def allow_decomposition(self) -> None:
        """Where no fused kernel takes an attention's dtype or head size, several kernels may."""
        for layer in self.layers("ATTENTION_INPUT"):
            layer.attention.decomposable = True

    def build(
        self, signature: Signature, profiles: Sequence[Profile] = (PREFILL, DECODE), *, target: str | None = None
    ) -> Engine:
        """Build an engine with one optimization profile for each of ``profiles``.

        Args:
            signature: names and dims of the inputs.
            profiles: what the engine is built for.
            target: a compute capability, e.g. ``SM89``; None takes the builder's default.

        Raises:
            RefusedError: the builder would not.
        """
        config = self._builder.create_builder_config()
        for loads in profiles:
            profile = self._builder.create_optimization_profile()
            for spec in signature.inputs:
                profile.set_shape(spec.name, *(spec.shape(**load.sizes()) for load in loads))
            config.add_optimization_profile(profile)
        if target is not None:
            config.num_compute_capabilities = 1
            config.set_compute_capability(getattr(trt.ComputeCapability, target), 0)
        LOGGER.texts.clear()
        started = time.perf_counter()
        serialized = self._builder.build_serialized_network(self._network, config)
        if serialized is None:
            raise RefusedError("; ".join(LOGGER.texts))
        return Engine(size=serialized.nbytes, seconds=time.perf_counter() - started)
