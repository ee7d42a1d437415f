"""The reference model's weights: which, in which dtype, rounded how; all of them, or one layer's at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from glm_export.calibration.formats import decode
from glm_export.calibration.quantization import Quantization
from glm_export.calibration.simulate import simulate
from glm_export.calibration.smoothed_weights import SmoothedWeights
from glm_export.checkpoints.checkpoint import Checkpoint
from glm_export.modeling import Decoder, building_in, linear_weights
from glm_export.spec.weight_formats import EMBEDDING, HEAD, WeightFormats


class ReferenceWeights:
    """A decoder without weights, and where to get them.

    With a quantization, weights it takes are rounded to its integers and back, and so are inputs, keys and values where
    it says so: what the quantized program computes with in a call of ``tokens`` tokens.
    """

    def __init__(
        self, checkpoint: Checkpoint, dtype: str = "float32", quantization: Quantization | None = None, tokens: int = 1
    ) -> None:
        self.checkpoint, self.dtype = checkpoint, getattr(torch, dtype)
        with torch.device("meta"), building_in(self.dtype):
            self.model = Decoder(checkpoint.config)
        # Some parameters keep a dtype of their own: routing is float32 in every model.
        self._dtypes = {name: parameter.dtype for name, parameter in self.model.state_dict().items()}
        self._formats = quantization.formats(linear_weights(self.model), checkpoint.config) if quantization else {}
        self._smoothed, self._tokens = SmoothedWeights(checkpoint, quantization), tokens
        self._quantization = quantization
        self.model.eval().requires_grad_(False)

    def simulate(self) -> None:
        """Let the model round what it reads and keeps; once."""
        if self._quantization is not None:
            # Prompts may have a form of their own; each is a model of its own.
            formats = {name: WeightFormats(both.of(self._tokens)) for name, both in self._formats.items()}
            simulate(self.model, self._quantization, formats)

    def names(self, prefix: str = "") -> list[str]:
        """Parameters below a module, by their whole names."""
        return [rule.target for rule in self.checkpoint.weight_map.rules if rule.target.startswith(prefix)]

    def weight(self, name: str) -> Tensor:
        """One parameter as the model has it; those stored in its dtype stay memory-mapped."""
        plain = self._dtypes[name] if name not in self._formats else None
        return self._kept(name, self._smoothed.parameter(name, plain))

    def head(self) -> Tensor:
        """The head's weight ``[V, H]``; where it is tied and quantized, in a way of its own."""
        if not self.checkpoint.config.tied_head:
            return self.weight(HEAD)
        return self._kept(HEAD, self._smoothed.linear(HEAD)) if HEAD in self._formats else self.weight(EMBEDDING)

    def _kept(self, name: str, weight: Tensor) -> Tensor:
        if name in self._formats:
            columns, beforehand = weight.shape[-1], self._smoothed.rounded
            given = beforehand.given(name, self._formats[name], columns) if beforehand is not None else None
            # Experts are stacked, and each row has its own blocks.
            weight = decode(self._formats[name].of(self._tokens), weight.flatten(0, -2), given).view(weight.shape)
        return weight.to(self._dtypes[name])

    def load(self) -> Decoder:
        """The whole model."""
        self.model.load_state_dict({name: self.weight(name) for name in self.names()}, assign=True)
        if self.checkpoint.config.tied_head:
            head = nn.Parameter(self.head()) if HEAD in self._formats else self.model.embedding.weight
            self.model.head.weight = head
        self.model.rebuild_tables(self.dtype)
        self.simulate()
        return self.model.eval().requires_grad_(False)

    @contextmanager
    def loaded(self, module: str) -> Iterator[nn.Module]:
        """Inside, one module has its weights; behind, none."""
        part, prefix = self.model.get_submodule(module), f"{module}."
        empty = {name: tensor.to("meta") for name, tensor in part.state_dict().items()}
        if module == HEAD.removesuffix(".weight"):
            weights = {"weight": self.head()}
        else:
            weights = {name.removeprefix(prefix): self.weight(name) for name in self.names(prefix)}
        part.load_state_dict(weights, assign=True)
        part.requires_grad_(False)
        try:
            yield part
        finally:
            part.load_state_dict(empty, assign=True)
