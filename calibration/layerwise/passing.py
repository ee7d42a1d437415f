"""One layer in memory, and rows of text that pass through it.

Shapes: S tokens of a row, H hidden channels, K key-value heads, P columns of a prefix, D head size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from glm_export.calibration.corpus.corpus import Sample
from glm_export.calibration.layerwise.observe import LayerObserver, Seen
from glm_export.checkpoints.checkpoint import Checkpoint
from glm_export.inputs.prompts import prefill_feeds
from glm_export.modeling import Decoder, KeyValue, Layer, building_in, norm
from glm_export.spec.config import GlmConfig
from glm_export.spec.weight_formats import EMBEDDING, HEAD

KEPT_SAMPLES = 128
"""Tokens, evenly spaced over the corpus, whose inputs decide about smoothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A checkpoint, one layer of which is computed at a time."""

    checkpoint: Checkpoint
    device: torch.device

    @property
    def config(self) -> GlmConfig:
        """Of the checkpoint."""
        return self.checkpoint.config

    def past(self, layer: int) -> KeyValue:
        """Keys and values ``[1, K, P, D]`` a layer begins with; P is 0 where the model has no prefix."""
        initial = self.checkpoint.initial_cache
        if initial is None or layer == self.config.num_layers:
            empty = torch.empty(1, self.config.kv_heads, 0, self.config.head_dim, device=self.device)
            return empty, empty
        key, value = initial[layer]
        return key.to(self.device), value.to(self.device)

    def layer(self, number: int) -> nn.Module:
        """One layer in float32; behind the last one the final norm and the head."""
        if number == self.config.num_layers:
            return self._head()
        prefix = name_of(number, self.config)
        with torch.device("meta"), building_in(torch.float32):
            module = Layer(self.config, number)
        weights = {
            rule.target.removeprefix(f"{prefix}."): self.checkpoint.parameter(rule).to(self.device).float()
            for rule in self.checkpoint.weight_map.rules
            if rule.target.startswith(f"{prefix}.")
        }
        module.load_state_dict(weights, assign=True)
        return module.eval().requires_grad_(False)

    def _head(self) -> nn.Module:
        head = nn.Linear(self.config.hidden_size, self.config.vocab_size, bias=False, device="meta")
        rules = {rule.target: rule for rule in self.checkpoint.weight_map.rules}
        weight = self.checkpoint.parameter(rules[EMBEDDING if self.config.tied_head else HEAD])
        head.weight = nn.Parameter(weight.to(self.device).float(), requires_grad=False)
        module = nn.Sequential()
        module.add_module("final_norm", self._final_norm())
        module.add_module("head", head)
        return module

    def _final_norm(self) -> nn.Module:
        if not self.config.final_norm:
            return nn.Identity()
        with torch.device("meta"), building_in(torch.float32):
            module = norm(self.config)
        rules = {rule.target: rule for rule in self.checkpoint.weight_map.rules}
        weights = {
            name: self.checkpoint.parameter(rules[f"final_norm.{name}"]).to(self.device).float()
            for name in module.state_dict()
        }
        module.load_state_dict(weights, assign=True)
        return module.eval()

    def entrance(self) -> Decoder:
        """What stands before the first layer: embeddings, memory-mapped, and rotary tables."""
        with torch.device("meta"), building_in(torch.float32):
            decoder = Decoder(replace(self.config, num_layers=1))
        for rule in self.checkpoint.weight_map.rules:
            if "embedding" in rule.target:
                module = decoder.get_submodule(rule.target.rsplit(".", 1)[0])
                module.weight = nn.Parameter(self.checkpoint.parameter(rule), requires_grad=False)
                module.register_forward_hook(_widened)
        decoder.rebuild_tables(torch.float32)
        return decoder

    def entered(self, decoder: Decoder, sample: Sample) -> tuple[Tensor, Any, Tensor]:
        """Hidden states ``[1, S, H]`` float32, rotation and mask of one row."""
        feeds = prefill_feeds([sample.prompt], self.config)
        ids, mask, positions = (torch.from_numpy(array) for array in feeds.named().values())
        hidden_BSH, rotary, mask_B1ST = decoder.embed(ids, mask, positions, 0)
        if rotary is not None:
            places = None if rotary.position_ids is None else rotary.position_ids.to(self.device)
            cos, sin = rotary.cos.to(self.device), rotary.sin.to(self.device)
            rotary = replace(rotary, cos=cos, sin=sin, position_ids=places)
        return hidden_BSH, rotary, mask_B1ST.to(self.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rows of a corpus that follow each other. ``before``: tokens ahead of them; ``total``: of the whole corpus."""

    samples: tuple[Sample, ...]
    before: int
    total: int


def name_of(layer: int, config: GlmConfig) -> str:
    """A layer's name among weights; what comes behind the last is the model's own."""
    return "model" if layer == config.num_layers else f"layers.{layer}"


@contextmanager
def observing(
    module: nn.Module, layer: int, config: GlmConfig, seen: Seen, *, gram: bool = False
) -> Iterator[LayerObserver]:
    """Hooks on a layer for as long as the block lasts.

    Args:
        module: the layer.
        layer: which it is.
        config: the model's.
        seen: is added to.
        gram: whether products of inputs are summed as well, for rounding.
    """
    observer = LayerObserver(module, name_of(layer, config), seen, gram=gram)
    try:
        yield observer
    finally:
        observer.close()


def passed(
    model: Model,
    decoder: Decoder | None,
    module: nn.Module,
    layer: int,
    rows: Rows,
    hidden: Iterable[Tensor],
    observer: LayerObserver | None = None,
) -> Iterator[Tensor]:
    """A layer's output for each row, float32 ``[S, H]``; empty behind the last, where it is only measured.

    Args:
        model: whose layer it is.
        decoder: its :meth:`Model.entrance`; None will do behind the last layer.
        module: its :meth:`Model.layer`.
        layer: which.
        rows: of text.
        hidden: what the layer reads of each, float32 ``[S, H]``.
        observer: sees all of it; None sees nothing.
    """
    before, past = rows.before, model.past(layer)
    for sample, hidden_SH in zip(rows.samples, hidden, strict=True):
        if layer == model.config.num_layers:
            module(hidden_SH[None].to(model.device))
            yield hidden_SH[:0]
            continue
        assert decoder is not None
        _, rotary, mask_B1ST = model.entered(decoder, sample)
        if observer is not None:
            observer.rotary, observer.past = rotary, past
            observer.rows_to_keep = _kept_rows(before, len(hidden_SH), rows.total)
        before += len(hidden_SH)
        output_BSH, _ = module(hidden_SH[None].to(model.device), rotary, mask_B1ST, past)
        yield output_BSH[0]


def _kept_rows(before: int, count: int, total: int) -> Tensor:
    """Which of a row's tokens are samples, so that they lie evenly over the corpus."""
    wanted = min(KEPT_SAMPLES, total)
    places = torch.arange(wanted) * total // wanted
    return places[(places >= before) & (places < before + count)] - before


def _widened(_: nn.Module, __: tuple[Tensor], rows: Tensor) -> Tensor:
    """What is looked up is float32 from here on; the table stays as it is stored."""
    return rows.float()
