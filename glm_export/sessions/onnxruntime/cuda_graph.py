"""One decode step captured as a CUDA graph: the same kernels launched at once instead of one by one.

Everything a captured step touches stays at one address and in one shape. So the mask is as wide as the cache, and a
step is captured anew when the batch changes size or the cache its place.
"""

from __future__ import annotations

import logging

import numpy as np
import onnxruntime

from glm_export.inputs.feeds import Feeds
from glm_export.sessions.logits import in_float32
from glm_export.sessions.onnxruntime.cache import InPlace
from glm_export.sessions.session import Logits
from glm_export.spec.signature import (
    ATTENTION_MASK,
    BATCH,
    INPUT_IDS,
    LOGITS,
    QUERY_LENGTHS,
    RECENT,
    SEQUENCE,
    TOTAL,
    Signature,
    TensorSpec,
)

ENABLE = {"enable_cuda_graph": "1"}
GRAPH_ID = "gpu_graph_id"
NOT_CAPTURED = "-1"
NOT_WAITED_FOR = "disable_synchronize_execution_providers"
MOST_GRAPHS = 64
"""ONNX Runtime keeps every graph until the session ends, and each holds memory of the device."""


def without_capture() -> onnxruntime.RunOptions:
    """For calls of changing shape, prompts above all."""
    return run_options(NOT_CAPTURED)


def run_options(graph_id: str | None, *, wait: bool = True) -> onnxruntime.RunOptions:
    """For one call.

    Args:
        graph_id: of the graph to capture or launch, :data:`NOT_CAPTURED`; None where the session captures nothing.
        wait: until the device has done it.
    """
    options = onnxruntime.RunOptions()
    if graph_id is not None:
        options.add_run_config_entry(GRAPH_ID, graph_id)
    if not wait:
        options.add_run_config_entry(NOT_WAITED_FOR, "1")
    return options


def step_specs(signature: Signature) -> list[TensorSpec]:
    """What a step of one token a row reads besides the cache, and its logits, which come last."""
    told = [QUERY_LENGTHS] if signature.ragged else []
    logits = next(spec for spec in signature.outputs if spec.name == LOGITS)
    return [*(signature.input(name) for name in (INPUT_IDS, ATTENTION_MASK, *told)), logits]


class GraphIds:
    """Ids for what a session captures, as long as it may capture more. ``taken``: so far."""

    def __init__(self) -> None:
        self.taken = 0

    def take(self) -> str:
        """A new one; :data:`NOT_CAPTURED` when there are :data:`MOST_GRAPHS`."""
        if self.taken >= MOST_GRAPHS:
            logging.getLogger(__name__).warning(
                "%d CUDA graphs were captured, and the runtime keeps them all: steps of further shapes run without; "
                "load the session again, or ask for batches of fewer sizes",
                self.taken,
            )
            return NOT_CAPTURED
        self.taken += 1
        return str(self.taken)


class CapturedGraph:
    """The decode step of a program with a shared cache, on CUDA; ``device`` is another in tests."""

    def __init__(
        self, runtime: onnxruntime.InferenceSession, signature: Signature, ids: GraphIds, device: str = "cuda"
    ) -> None:
        self._runtime = runtime
        self._signature = signature
        self._ids = ids
        self._device = device
        self._binding: onnxruntime.IOBinding | None = None
        self._cache: InPlace | None = None
        self._shape = (0, 0)

    def replay(self, feeds: Feeds, cache: InPlace) -> Logits:
        """One token a row; the first after a reset is captured. Logits float32 ``[B, 1, V]``."""
        shape = (feeds.batch, cache.reserved)
        if self._binding is None or self._cache is not cache or self._shape != shape:
            self._prepare(shape, cache)
        mask = np.zeros(shape, np.int64)
        mask[:, : feeds.attention_mask.shape[1]] = feeds.attention_mask
        self._values[INPUT_IDS].update_inplace(np.ascontiguousarray(feeds.input_ids))
        self._values[ATTENTION_MASK].update_inplace(mask)
        self._runtime.run_with_iobinding(self._binding, self._run_options)
        return in_float32(self._values[LOGITS].numpy())

    def reset(self) -> None:
        """Give up what was captured, and the cache it was captured on: its buffers move."""
        self._binding = self._cache = None

    def _prepare(self, shape: tuple[int, int], cache: InPlace) -> None:
        batch, columns = shape
        sizes = {BATCH: batch, SEQUENCE: 1, RECENT: 1, TOTAL: columns}
        specs = step_specs(self._signature)
        self._values = {
            spec.name: onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                spec.shape(**sizes), np.dtype(spec.dtype).type, self._device
            )
            for spec in specs
        }
        self._binding = self._runtime.io_binding()
        if QUERY_LENGTHS in self._values:
            self._values[QUERY_LENGTHS].update_inplace(np.ones(batch, np.int32))
        for name, value in self._values.items():
            bind = self._binding.bind_ortvalue_output if name == LOGITS else self._binding.bind_ortvalue_input
            bind(name, value)
        cache.bind(self._binding)
        self._run_options = run_options(self._ids.take())
        self._cache, self._shape = cache, shape
