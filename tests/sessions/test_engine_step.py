"""A captured step is replayed for the shape and the caches it was recorded with, and for no others."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from glm_export.sessions.tensorrt.step import EngineStep, LoadedEngine
from glm_export.spec.optimization_profile import OptimizationProfile
from glm_export.spec.signature import BATCH, INPUT_IDS, LOGITS, SEQUENCE, Signature, TensorSpec

SIGNATURE = Signature(
    inputs=(TensorSpec(name=INPUT_IDS, dtype="int64", dims=(BATCH, SEQUENCE)),),
    outputs=(TensorSpec(name=LOGITS, dtype="float32", dims=(BATCH, 1, 7)),),
)


class Context:
    """Says yes to everything, and counts what it was asked to run."""

    def __init__(self) -> None:
        self.executed = 0
        self.device_memory = 0

    def __getattr__(self, name: str) -> Callable[..., bool]:
        return lambda *_: True

    def execute_async_v3(self, _: int) -> bool:
        self.executed += 1
        return True


class Device:
    """Host memory; a captured launch counts its replays instead of running."""

    stream = 0

    def __init__(self) -> None:
        self.replayed = 0

    def synchronize(self) -> None:
        """Nothing is under way."""

    def pinned(self, count: int, dtype: str) -> torch.Tensor:
        return self.zeros(count, dtype)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        target.copy_(source)

    def zeros(self, count: int, dtype: str) -> torch.Tensor:
        return torch.zeros(count, dtype=getattr(torch, dtype))

    def put(self, tensor: torch.Tensor, array: np.ndarray) -> None:
        tensor.copy_(torch.from_numpy(array))

    def capture(self, _: Callable[[], None]) -> Callable[[], None]:
        def replay() -> None:
            self.replayed += 1

        return replay


@pytest.fixture
def step() -> tuple[EngineStep, Context, Device]:
    context, device = Context(), Device()
    dtypes = {INPUT_IDS: "INT64", LOGITS: "FLOAT"}
    loaded: Any = LoadedEngine(
        tensorrt=SimpleNamespace(find=lambda _: None, log=SimpleNamespace(clear=lambda: None, reason="")),
        runtime=None,
        engine=SimpleNamespace(get_tensor_dtype=lambda name: SimpleNamespace(name=dtypes[name])),
        device=device,
    )
    profile = OptimizationProfile(name="decode", shapes={INPUT_IDS: ((1, 1), (2, 1), (4, 2))})
    return EngineStep(loaded, 0, profile, SIGNATURE, context, torch.zeros(1)), context, device


def ids(rows: int, tokens: int = 1) -> dict[str, np.ndarray]:
    return {INPUT_IDS: np.ones((rows, tokens), np.int64)}


def test_the_same_shape_over_the_same_caches_is_replayed(step: tuple[EngineStep, Context, Device]) -> None:
    stepping, context, device = step
    caches: list[Any] = []
    for _ in range(3):
        stepping.run(ids(2), caches, capture=True)
    assert (context.executed, device.replayed) == (1, 2)


@pytest.mark.parametrize("change", ["rows", "tokens", "caches", "capture", "reset"])
def test_anything_else_is_run_anew(change: str, step: tuple[EngineStep, Context, Device]) -> None:
    stepping, context, device = step
    caches: list[Any] = []
    stepping.run(ids(2), caches, capture=True)
    if change == "reset":
        stepping.reset()
    stepping.run(
        ids(3 if change == "rows" else 2, 2 if change == "tokens" else 1),
        [] if change == "caches" else caches,
        capture=change != "capture",
    )
    assert (context.executed, device.replayed) == (2, 0)
