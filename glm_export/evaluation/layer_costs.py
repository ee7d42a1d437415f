"""Which layer costs how much, and which to spare so that a budget holds.

Measured on the PyTorch model that computes as a quantized program does: one linear layer after another is quantized
alone, and the distance of its predictions from the float model's is what it costs. Then the dearest are left in float,
the fewest that suffice. In the memory of one layer (``layer_by_layer``) costs are estimated, and what the chosen layers
cost together is measured all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from glm_export.artifacts.program import OnnxProgram
from glm_export.calibration.corpus.corpus import Corpus, Sample
from glm_export.calibration.quantization import Quantization
from glm_export.checkpoints.checkpoint import Checkpoint
from glm_export.errors import InputError, NonFiniteError
from glm_export.evaluation.kept_costs import KeptCosts, several
from glm_export.evaluation.layerwise.rounding_costs import LayeredSimulation
from glm_export.inputs.prompts import prefill_feeds
from glm_export.modeling import Decoder, KeyValue, linear_weights
from glm_export.progress import Advance, NullProgress, Progress
from glm_export.proof.check import quantization_of
from glm_export.sessions.torch import load_reference
from glm_export.spec.weight_formats import HEAD

LOGITS_BYTES = 512 << 20
"""Predictions of the float model are kept while the others are compared with them; a corpus is thinned to fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """What quantizing one linear layer alone costs. ``kl``: nats a token; ``estimated``: not measured."""

    weight: str
    kl: float
    estimated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedPrecision:
    """A choice of layers to leave in float.

    ``costs``: of every layer alone, the dearest first. ``excluded``: weight and why. ``kl``: of the rest together, and
    ``kl_all``: with nothing excluded.
    """

    costs: tuple[LayerCost, ...]
    excluded: dict[str, str]
    kl: float
    kl_all: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class _Simulation:
    """A float model whose linear layers can be exchanged for quantized ones, each on its own."""

    def __init__(self, checkpoint: Checkpoint, quantization: Quantization, dtype: str, corpus: Corpus) -> None:
        # Smoothing is done by each layer itself: folded into its neighbours it could not be exchanged alone.
        kind = getattr(torch, dtype)
        alone = replace(quantization, folded_into_parameters=False)
        self.model = load_reference(checkpoint, dtype)
        self.quantized = load_reference(checkpoint, dtype, alone)
        names = linear_weights(self.model)
        # Routed experts are stacks of weights and no modules to exchange: they stay as they are in both.
        self.weights = [name for name in alone.formats(names, checkpoint.config) if name in names]
        self._float = {name: self.model.get_submodule(_module(name)) for name in self.weights}
        initial = checkpoint.initial_cache
        self._past = [(key.to(kind), value.to(kind)) for key, value in initial] if initial is not None else None
        samples = _that_fit(corpus, checkpoint.config.vocab_size)
        self._rows = [(sample, _predicted(self.model, sample, self._past)) for sample in samples]
        if not all(logits.max(dim=-1).values.isfinite().all() for _, logits in self._rows):
            raise NonFiniteError(
                f"the model in {dtype} computes NaN or infinite logits before anything is quantized; "
                "take --reference-dtype float32, or see with check whether the checkpoint computes numbers"
            )
        self.tokens = sum(len(logits) for _, logits in self._rows)

    @contextmanager
    def exchanged(self, weights: Sequence[str]) -> Iterator[None]:
        """Inside, these layers are the quantized ones."""
        for name in weights:
            self._set(name, self.quantized.get_submodule(_module(name)))
        try:
            yield
        finally:
            for name in weights:
                self._set(name, self._float[name])

    def kl(self, weights: Sequence[str], advance: Advance) -> float:
        """Mean KL divergence of the predictions with these layers quantized, from the float model's; nats a token."""
        total = 0.0
        with self.exchanged(weights):
            for sample, expected in self._rows:
                total += float(_divergences(expected, _predicted(self.model, sample, self._past)).sum())
        advance(1)
        return total / self.tokens

    def _set(self, name: str, module: nn.Module) -> None:
        parent, _, child = _module(name).rpartition(".")
        setattr(self.model.get_submodule(parent), child, module)


def _module(weight: str) -> str:
    return weight.removesuffix(".weight")


def _that_fit(corpus: Corpus, vocabulary: int) -> list[Sample]:
    """Evenly spaced samples whose predictions stay within :data:`LOGITS_BYTES`, at least one.

    Raises:
        InputError: no sample has anything to predict.
    """
    samples = [sample for sample in corpus.samples if sample.counted_from < len(sample.prompt.ids)]
    if not samples:
        raise InputError("the corpus has nothing to predict; give texts, or prompts with completions")
    room = LOGITS_BYTES // (4 * vocabulary)
    for step in range(1, len(samples) + 1):
        thinned = samples[::step]
        if sum(len(sample.prompt.ids) - sample.counted_from for sample in thinned) <= room:
            return thinned
    return samples[:1]


@torch.inference_mode()
def _predicted(model: Decoder, sample: Sample, past: Sequence[KeyValue] | None) -> Tensor:
    """Log-probabilities for each token that is counted, float32 ``[S, V]``."""
    feeds = prefill_feeds([sample.prompt], model.config)
    tensors = [torch.from_numpy(array) for array in feeds.named().values()]
    logits_SV = model(*tensors, past).logits[0, sample.counted_from - 1 : -1]
    return torch.log_softmax(logits_SV.float(), dim=-1)


def _divergences(expected_SV: Tensor, found_SV: Tensor) -> Tensor:
    """KL(expected || found) of each token, ``[S]``; infinite where ``found`` is no number."""
    divergences_S = torch.sum(expected_SV.exp() * (expected_SV - found_SV), dim=-1)
    # Never negative, but for the rounding of a sum over the vocabulary.
    return torch.nan_to_num(divergences_S, nan=float("inf")).clamp_(min=0)


def sensitivity(
    checkpoint: Checkpoint,
    quantization: Quantization,
    corpus: Corpus,
    *,
    dtype: str = "float32",
    layer_by_layer: bool = False,
    progress: Progress | None = None,
) -> tuple[LayerCost, ...]:
    """What each linear layer costs, quantized alone; the dearest first.

    Args:
        checkpoint: the model; it and its quantized layers are held in memory.
        quantization: what would be done to all layers.
        corpus: the text; thinned where its predictions would take more than :data:`LOGITS_BYTES`.
        dtype: of the simulation.
        layer_by_layer: estimate them in the memory of one layer
            (:mod:`glm_export.evaluation.layerwise.rounding_costs`); otherwise both models are held whole.
        progress: shows how far it is.

    Raises:
        InputError: the corpus has nothing to predict.
        EnvironmentMissingError: memory does not suffice.
    """
    show = progress or NullProgress()
    if layer_by_layer:
        with LayeredSimulation(checkpoint, quantization, dtype, corpus) as layered:
            return _estimated(layered, show, KeptCosts(None, {}))
    return _costs(_Simulation(checkpoint, quantization, dtype, corpus), show, KeptCosts(None, {}))


def _estimated(simulation: LayeredSimulation, show: Progress, kept: KeptCosts) -> tuple[LayerCost, ...]:
    advance = show.task("there and back", 2 * simulation.layers)
    simulation.forward(advance)
    known = {name: kl for name in simulation.weights if (kl := kept.get(name)) is not None}
    if len(known) < len(simulation.weights):
        known = {name: kept.put(name, kl) for name, kl in simulation.costs(advance).items()}
    else:
        advance(simulation.layers)
    found = known
    return tuple(
        LayerCost(weight=name, kl=kl, estimated=name != HEAD) for name, kl in sorted(found.items(), key=lambda x: -x[1])
    )


def _costs(simulation: _Simulation, show: Progress, kept: KeptCosts) -> tuple[LayerCost, ...]:
    missing = [name for name in simulation.weights if kept.get(name) is None]
    # Those that are known already take no time, and say nothing of what the others will.
    advance = show.task("layer by layer", len(missing))
    for name in missing:
        kept.put(name, simulation.kl([name], advance))
    costs = [LayerCost(weight=name, kl=kept.get(name) or 0.0) for name in simulation.weights]
    return tuple(sorted(costs, key=lambda cost: -cost.kl))


def exclude_layers(
    checkpoint: Checkpoint,
    quantization: Quantization,
    corpus: Corpus,
    kl: float,
    *,
    dtype: str = "float32",
    layer_by_layer: bool = False,
    kept: KeptCosts | None = None,
    progress: Progress | None = None,
) -> MixedPrecision:
    """Find the fewest layers to leave in float so that the rest together cost at most ``kl``.

    Layers are excluded in the order of what they cost alone; how many is searched by halving, and the answer holds what
    it promises: it was measured, and one layer fewer was measured to be too few.

    Args:
        checkpoint: as :func:`sensitivity`, which it starts with.
        quantization: what is done to the layers that are not excluded.
        corpus: the text.
        kl: largest mean KL divergence from the float model, nats a token.
        dtype: of the simulation.
        layer_by_layer: in the memory of one layer: the order is that of estimates.
        kept: what is measured is added to these, and what they know is not measured again.
        progress: shows how far it is.

    Raises:
        InputError: the corpus has nothing to predict.
        EnvironmentMissingError: memory does not suffice.
    """
    show = progress or NullProgress()
    known = kept if kept is not None else KeptCosts(None, {})
    if layer_by_layer:
        with LayeredSimulation(checkpoint, quantization, dtype, corpus) as layered:
            return _fewest(_estimated(layered, show, known), layered.kl, kl, show, known)
    simulation = _Simulation(checkpoint, quantization, dtype, corpus)
    return _fewest(_costs(simulation, show, known), simulation.kl, kl, show, known)


def _fewest(
    costs: tuple[LayerCost, ...],
    together: Callable[[Sequence[str], Advance], float],
    kl: float,
    show: Progress,
    kept: KeptCosts,
) -> MixedPrecision:
    order = [cost.weight for cost in costs]
    advance = show.task("together", len(order).bit_length() + 1)
    measured: dict[int, float] = {len(order): 0.0}

    def with_excluded(count: int) -> float:
        if count not in measured:
            name = several(order[count:])
            before = kept.get(name)
            measured[count] = kept.put(name, together(order[count:], advance)) if before is None else before
        return measured[count]

    low, high = 0, len(order)  # sparing `high` suffices
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if with_excluded(middle) <= kl else (middle + 1, high)
    reasons = {
        cost.weight: f"costs KL {cost.kl:.2g} alone{', estimated' if cost.estimated else ''}" for cost in costs[:high]
    }
    return MixedPrecision(costs=costs, excluded=reasons, kl=with_excluded(high), kl_all=with_excluded(0))


def costs_by_layer(
    program: OnnxProgram,
    checkpoint: Checkpoint,
    corpus: Corpus,
    dtype: str = "float32",
    *,
    layer_by_layer: bool = False,
    progress: Progress | None = None,
) -> tuple[LayerCost, ...]:
    """What each layer of a quantized program costs alone; see :func:`sensitivity`.

    Raises:
        InputError: the program is not quantized.
    """
    quantization = quantization_of(program)
    if quantization is None:
        raise InputError(f"{program.folder} is not quantized; there is nothing to tell apart by layer")
    return sensitivity(checkpoint, quantization, corpus, dtype=dtype, layer_by_layer=layer_by_layer, progress=progress)
