"""The reference decoder one layer at a time: calls go through it together, and memory holds one layer's weights.

Shapes: B batch, S new tokens, P past tokens, T = P + S, H hidden size, K key-value heads, D head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from glm_export.calibration.quantization import Quantization
from glm_export.checkpoints.checkpoint import Checkpoint
from glm_export.graphs.patterns.rotary import Rotation
from glm_export.modeling import Decoder, Layer
from glm_export.sessions.reference_weights import ReferenceWeights
from glm_export.sessions.session import SessionDescription, Tensors
from glm_export.sessions.torch import initial_cache_of, numpy_of
from glm_export.spec.signature import (
    ATTENTION_MASK,
    INPUT_IDS,
    LOGITS,
    POSITION_IDS,
    Cache,
    past_names,
    present_names,
)
from glm_export.spec.weight_formats import EMBEDDING, HEAD, PROMPT_TOKENS

HEAD_MODULES = ("final_norm", "head")


@dataclass(slots=True, kw_only=True)
class LayerCall:
    """What every layer of one call is given: its past, the rotation, the mask."""

    tensors: Tensors
    rotary: Rotation | None
    mask_B1ST: Tensor
    dtype: torch.dtype

    def past(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values ``[B, K, P, D]`` of a layer, in the reference's dtype."""
        key, value = (torch.from_numpy(np.ascontiguousarray(self.tensors[name])) for name in past_names(layer))
        return key.to(self.dtype), value.to(self.dtype)


class LayeredReference:
    """The reference model over a checkpoint that need not fit memory.

    Args:
        checkpoint: the model.
        dtype: it computes in.
        quantization: what a quantized program does, simulated.
    """

    def __init__(
        self, checkpoint: Checkpoint, dtype: str = "float32", quantization: Quantization | None = None
    ) -> None:
        checkpoint.audit()
        self.config, self.checkpoint = checkpoint.config, checkpoint
        self.dtype_name, self.dtype = dtype, getattr(torch, dtype)
        self._weights = ReferenceWeights(checkpoint, dtype, quantization)
        # A recipe with a form of its own for prompts is two models.
        own_prompts = quantization is not None and quantization.recipe.prompt is not None
        prompts = ReferenceWeights(checkpoint, dtype, quantization, PROMPT_TOKENS + 1) if own_prompts else None
        self._prompt_weights = prompts or self._weights
        for weights in {id(w): w for w in (self._weights, self._prompt_weights)}.values():
            weights.simulate()
        self._initial = initial_cache_of(checkpoint, quantization)
        self._embeddings()

    def _embeddings(self) -> None:
        """Tables stay memory-mapped, in the dtype they are stored in; what is looked up is widened."""
        model = self._weights.model
        for name, module in model.named_children():
            if isinstance(module, nn.Embedding):
                rule = next(r for r in self.checkpoint.weight_map.rules if r.target == f"{name}.weight")
                module.weight = nn.Parameter(self.checkpoint.parameter(rule), requires_grad=False)
                module.register_forward_hook(lambda _, __, rows: rows.to(self.dtype))
        model.rebuild_tables(self.dtype)

    @torch.no_grad()
    def enter(self, tensors: Tensors) -> tuple[LayerCall, Tensor]:
        """A call as its layers see it, and what the first one reads, ``[B, S, H]``."""
        ids, mask, positions = (
            torch.from_numpy(np.ascontiguousarray(tensors[name])) for name in (INPUT_IDS, ATTENTION_MASK, POSITION_IDS)
        )
        past = tensors[past_names(0)[0]].shape[2]
        hidden_BSH, rotary, mask_B1ST = self._weights.model.embed(ids, mask, positions, past)
        return LayerCall(tensors=tensors, rotary=rotary, mask_B1ST=mask_B1ST, dtype=self.dtype), hidden_BSH

    def run(self, tensors: Tensors) -> Tensors:
        """One call through all layers, by the names of the canonical signature."""
        call, hidden_BSH = self.enter(tensors)
        found: Tensors = {}
        for index in range(self.config.num_layers):
            with self.layer(index, tensors[INPUT_IDS].size) as layer:
                hidden_BSH, present = layer(hidden_BSH, call.rotary, call.mask_B1ST, call.past(index))
            found |= zip(present_names(index), map(numpy_of, present), strict=True)
        return {LOGITS: self.logits([hidden_BSH])[0]} | found

    def first_past(self, rows: int) -> Tensors:
        """What a batch begins with, ``[B, K, P, D]``: the model's prefix, or nothing."""
        config, initial = self.config, self._initial
        names = [name for layer in range(config.num_layers) for name in past_names(layer)]
        if initial is None:
            return {name: np.zeros((rows, config.kv_heads, 0, config.head_dim), np.float32) for name in names}
        return {name: np.repeat(initial.arrays[name], rows, axis=0) for name in names}

    def describe(self) -> SessionDescription:
        """PyTorch on the processor."""
        return SessionDescription(
            runtime="pytorch",
            version=torch.__version__,
            device="cpu",
            dialect=None,
            dtype=self.dtype_name,
            cache=Cache.GROWING,
            threads=torch.get_num_threads(),
        )

    @contextmanager
    def layer(self, index: int, tokens: int = 1) -> Iterator[Layer]:
        """One layer with its weights, as it computes in calls of that many tokens."""
        weights = self._prompt_weights if tokens > PROMPT_TOKENS else self._weights
        with torch.no_grad(), weights.loaded(f"layers.{index}") as module:
            assert isinstance(module, Layer)
            yield module

    @contextmanager
    def module(self, name: str) -> Iterator[nn.Module]:
        """Another part with its weights: a norm, or the head."""
        with torch.no_grad(), self._weights.loaded(name) as module:
            yield module

    @property
    def empty_model(self) -> Decoder:
        """The decoder, its layers without weights."""
        return self._weights.model

    def head_weight(self) -> Tensor:
        """The float model's head ``[V, H]`` as it is stored, memory-mapped where it need not be worked out."""
        rules = {rule.target: rule for rule in self.checkpoint.weight_map.rules}
        return self.checkpoint.parameter(rules[EMBEDDING if self.config.tied_head else HEAD])

    def norm_behind(self, layer: int) -> str:
        """The norm that reads a layer's output."""
        return f"layers.{layer + 1}.attention_norm" if layer + 1 < self.config.num_layers else "final_norm"

    def normed(self, layer: int, hidden: list[Tensor]) -> list[Tensor]:
        """Outputs of a layer (-1: of what stands before the first) behind the next norm."""
        with self.module(self.norm_behind(layer)) as norm:
            return [norm(hidden_BSH) for hidden_BSH in hidden]

    def logits(self, hidden: list[Tensor]) -> list[NDArray[Any]]:
        """Logits ``[B, S, V]`` of what the last layer puts out."""
        normed = self.normed(self.config.num_layers - 1, hidden)
        with self.module("head") as head:
            return [numpy_of(head(normed_BSH)) for normed_BSH in normed]
