"""A decode step whose inputs and logits lie in PyTorch's memory: what a loop on the device reads and changes."""

from __future__ import annotations

import numpy as np
import onnxruntime
import torch

from glm_export.inputs.feeds import Feeds
from glm_export.sessions.device.device import Device, address
from glm_export.sessions.device.loop_step import LoopStep
from glm_export.sessions.onnxruntime.cache import InPlace
from glm_export.sessions.onnxruntime.cuda_graph import GraphIds, run_options, step_specs
from glm_export.spec.dtypes import torch_name
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
)


class DeviceStep:
    """The decode step of a program with a shared cache. Buffers stay while batch and cache do.

    ``ids``: of captured graphs; None where the session captures none. ``captures``: whether it does.
    """

    def __init__(
        self,
        runtime: onnxruntime.InferenceSession,
        signature: Signature,
        device: Device,
        ids: GraphIds | None,
    ) -> None:
        self._runtime, self._signature, self._device, self._ids = runtime, signature, device, ids
        self.captures = ids is not None
        self._cache: InPlace | None = None
        self._shape = (0, 0)

    def loop(self, feeds: Feeds, cache: InPlace) -> LoopStep:
        """The step, with a call's inputs in place. ``launch`` does not wait for the device.

        With a captured graph ONNX Runtime 1.31 waits all the same (microsoft/onnxruntime#28686).
        """
        shape = (feeds.batch, cache.reserved)
        if self._cache is not cache or self._shape != shape:
            self._prepare(shape, cache)
        mask = np.zeros(shape, np.int64)
        mask[:, : feeds.attention_mask.shape[1]] = feeds.attention_mask
        self._device.put(self._tensors[INPUT_IDS], feeds.input_ids)
        self._device.put(self._tensors[ATTENTION_MASK], mask)
        inputs = {name: self._tensors[name] for name in (INPUT_IDS, ATTENTION_MASK)}
        return LoopStep(device=self._device, inputs=inputs, logits=self._tensors[LOGITS], launch=self._launch)

    def reset(self) -> None:
        """Give up the cache: its buffers move."""
        self._cache = None

    def _launch(self) -> None:
        self._runtime.run_with_iobinding(self._binding, self._options)

    def _prepare(self, shape: tuple[int, int], cache: InPlace) -> None:
        batch, columns = shape
        sizes = {BATCH: batch, SEQUENCE: 1, RECENT: 1, TOTAL: columns}
        self._binding = self._runtime.io_binding()
        self._tensors: dict[str, torch.Tensor] = {}
        target = self._device.target
        for spec in step_specs(self._signature):
            with self._device.on_stream():
                dtype = getattr(torch, torch_name(spec.dtype))
                # Each row has one token, from step to step; the rest is put in before a step reads it.
                tensor = torch.full(spec.shape(**sizes), spec.name == QUERY_LENGTHS, dtype=dtype, device=target)
            self._tensors[spec.name] = tensor
            bind = self._binding.bind_output if spec.name == LOGITS else self._binding.bind_input
            bind(spec.name, target.type, target.index or 0, np.dtype(spec.dtype), list(tensor.shape), address(tensor))
        cache.bind(self._binding)
        self._options = run_options(self._ids.take() if self._ids is not None else None, wait=False)
        self._cache, self._shape = cache, shape
