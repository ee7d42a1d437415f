"""How many of an engine's weights stay on the device, where others are fetched from the host in every step."""

from __future__ import annotations

from typing import Any

from glm_export.artifacts.engine import Engine
from glm_export.engines.inspection import activations
from glm_export.engines.vendor import TensorRT
from glm_export.errors import EnvironmentMissingError
from glm_export.sessions.device.device import Device
from glm_export.spec.signature import Cache

RESERVED_BYTES = 256 << 20
"""For inputs, logits, and what libraries take beside us."""


def budget_bytes(streamable: int, free: int, taken: int) -> int:
    """What may stay on the device: all of it, or what is left when everything else has its place.

    Args:
        streamable: weights that could stay on the host.
        free: of the device, before anything but the engine is there.
        taken: scratch and caches, which come after.

    Raises:
        EnvironmentMissingError: not even those fit.
    """
    left = free - taken - RESERVED_BYTES
    if left < 0:
        raise EnvironmentMissingError(
            f"the GPU has {free / 1e9:.2f} GB free, and scratch and caches need {(taken + RESERVED_BYTES) / 1e9:.2f} "
            "GB without any weights; build with a smaller --max-batch, --max-context or --prefill-tokens"
        )
    return min(streamable, left)


def stream_weights(tensorrt: TensorRT, engine: Any, built: Engine, device: Device) -> bool:
    """Set the budget of an engine that was built for it, before it has contexts.

    TensorRT's own choice is all memory that is free, before scratch and caches have theirs.

    Returns:
        Whether weights are fetched in every step: then a step waits for the host, and cannot be captured.

    Raises:
        EnvironmentMissingError: device memory is short.
    """
    streamable = int(engine.streamable_weights_size)
    engine.weight_streaming_budget_v2 = budget_bytes(
        streamable, device.free_memory(), max(activations(tensorrt, engine)) + _cache_bytes(built)
    )
    return int(engine.weight_streaming_budget_v2) < streamable


def _cache_bytes(engine: Engine) -> int:
    """Of the largest batch; a growing cache is kept twice."""
    kept = 1 if engine.program.signature.cache is Cache.STATIC else 2
    return kept * int(engine.manifest["memory"]["cache"])
