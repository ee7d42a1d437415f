"""What rounding a layer costs at the logits, estimated in the memory of one layer.

Rounding one product moves its output by ``d``; to second order the predictions of a row move by
``KL = 1/2 d' J' F J d``, J the derivative of the logits by that output and ``F = diag(p) - p p'`` the Fisher
information of the predicted distributions p. With random signs z, ``u = sqrt(p) z - p (sqrt(p)' z)`` has the
covariance F, so the cost is the mean of ``(g · d)**2 / 2`` with ``g = J' u``. One pass forward keeps what each layer
reads, on disk; one pass back carries g of a few draws from the logits to every layer, where each product is computed
again as it would be rounded. Exact costs (:mod:`glm_export.evaluation.layer_costs`) take a pass forward for every
product.

Source: Amari and Nagaoka, "Methods of Information Geometry" (2000), for KL as F to second order; Hutchinson, "A
stochastic estimator of the trace of the influence matrix" (1989), for means over random signs.

Shapes: S tokens of a row, H hidden size, V vocabulary, X tokens that are predicted, D draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from glm_export.calibration.corpus.corpus import Corpus, Sample
from glm_export.calibration.quantization import Quantization
from glm_export.checkpoints.checkpoint import Checkpoint
from glm_export.errors import NonFiniteError
from glm_export.evaluation.layerwise.hidden_rows import HiddenRows
from glm_export.evaluation.layerwise.quality import TextRows, blocks, enter, pass_rows, reference_logits
from glm_export.evaluation.measure import KL, compare_predictions, predicted_samples
from glm_export.machine.scratch import ScratchFolder
from glm_export.modeling import linear_weights
from glm_export.progress import Advance
from glm_export.proof.layers.reference import LayeredReference
from glm_export.sessions.torch import numpy_of
from glm_export.spec.weight_formats import HEAD

DRAWS = 8
"""Of signs, for each row."""
TOKENS = 4096
"""Of text, at most, evenly spaced rows: what every layer reads of them lies on disk."""


class LayeredSimulation:
    """A float model whose products can be exchanged for rounded ones, one layer of each in memory.

    ``weights``: of products that are rounded. ``tokens``: predicted ones.

    Args:
        checkpoint: the model.
        quantization: what would be done to all products; smoothing is done by each product itself.
        dtype: of both.
        corpus: the text; of more than :data:`TOKENS` evenly spaced rows are taken.
        seed: of the signs.
    """

    def __init__(
        self, checkpoint: Checkpoint, quantization: Quantization, dtype: str, corpus: Corpus, *, seed: int = 0
    ) -> None:
        alone = replace(quantization, folded_into_parameters=False)
        self.reference = LayeredReference(checkpoint, dtype)
        self.rounded = LayeredReference(checkpoint, dtype, alone)
        names = linear_weights(self.reference.empty_model)
        # Routed experts are stacks of weights and no modules to exchange: they stay as they are in both.
        self.weights = [name for name in alone.formats(names, checkpoint.config) if name in names]
        self.rows = TextRows(self.reference, _that_fit(list(predicted_samples(corpus).values())))
        self.tokens = sum(len(self.rows.ids(row)) for row in range(len(self.rows.lengths)))
        self.layers = checkpoint.config.num_layers
        self._random = torch.Generator().manual_seed(seed)
        self._stack, self._scratch = ExitStack(), ScratchFolder()
        self._stack.callback(self._scratch.close)
        self._kept = [self._file(f"layer-{layer}") for layer in range(self.layers + 1)]

    def __enter__(self) -> LayeredSimulation:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def forward(self, advance: Advance) -> None:
        """Keep what each layer of the float model reads; the last file is what the head reads.

        Raises:
            NonFiniteError: the float model computes no numbers.
        """
        enter(self.rows, self._kept[0])
        for number in range(self.layers):
            for row in range(len(self.rows.lengths)):
                self._kept[number + 1].write(row, self._kept[number].read(row))
            with self.reference.layer(number) as layer:
                pass_rows(self.rows, layer, number, self._kept[number + 1])
            advance(1)
        for logits_XV in reference_logits(self.rows, self._kept[-1]):
            if not np.isfinite(logits_XV.max(axis=-1)).all():
                raise NonFiniteError(
                    f"the model in {self.reference.dtype_name} computes NaN or infinite logits before anything is "
                    "quantized; take --reference-dtype float32, or see with check whether it computes numbers"
                )

    def costs(self, advance: Advance) -> dict[str, float]:
        """What rounding each product alone costs, nats a token, estimated; :meth:`forward` has run.

        Args:
            advance: called behind each layer.
        """
        found = dict.fromkeys(self.weights, 0.0)
        gradients = [self._file(f"draw-{draw}") for draw in range(DRAWS)]
        self._draw(gradients)
        for number in reversed(range(self.layers)):
            names = [name for name in self.weights if name.startswith(f"layers.{number}.")]
            with self.reference.layer(number) as layer, self.rounded.layer(number) as rounded:
                for row in range(len(self.rows.lengths)):
                    for name, cost in self._back(layer, rounded, number, row, names, gradients).items():
                        found[name] += cost
            advance(1)
        costs = {name: cost / self.tokens for name, cost in found.items()}
        # Behind the head are the logits themselves: its cost is no estimate.
        return costs | ({HEAD: self.kl([HEAD])} if HEAD in costs else {})

    def kl(self, weights: Sequence[str], advance: Advance | None = None) -> float:
        """Mean KL divergence of the predictions with these products rounded, from the float model's; nats a token."""
        chosen, first = set(weights), min(map(self._layer_of, weights), default=self.layers)
        with self._file(f"kl-{first}-{len(chosen)}") as hidden:
            for row in range(len(self.rows.lengths)):
                # Before the first rounded layer nothing differs.
                hidden.write(row, self._kept[first].read(row))
            for number in range(first, self.layers):
                with self._exchanged(number, chosen) as layer:
                    pass_rows(self.rows, layer, number, hidden)
            if advance is not None:
                advance(1)
            return self._divergence(hidden, rounded_head=HEAD in chosen)

    def _divergence(self, hidden: HiddenRows, *, rounded_head: bool) -> float:
        total = 0.0
        expected = reference_logits(self.rows, self._kept[-1])
        found = self._rounded_logits(hidden) if rounded_head else reference_logits(self.rows, hidden)
        with np.errstate(invalid="ignore"):
            for row in range(len(self.rows.lengths)):
                ids = self.rows.ids(row)
                for at in self.rows.parts(row):
                    kl_X = compare_predictions(next(expected), next(found), ids[at])[:, KL]
                    total += float(np.nan_to_num(kl_X, nan=np.inf, posinf=np.inf).sum())
        return total / self.tokens

    def _rounded_logits(self, hidden: HiddenRows) -> Iterator[np.ndarray]:
        with self.rounded.module("head") as head:
            for row in range(len(self.rows.lengths)):
                normed_SH = self._normed(hidden, row)
                for at in self.rows.parts(row):
                    yield numpy_of(head(normed_SH[None, at]))[0].astype(np.float32)

    def _normed(self, hidden: HiddenRows, row: int) -> Tensor:
        read_BSH = torch.from_numpy(hidden.read(row)[self.rows.predicting(row)])[None].to(self.reference.dtype)
        return self.reference.normed(self.layers - 1, [read_BSH])[0][0]

    def _draw(self, gradients: Sequence[HiddenRows]) -> None:
        """``g`` at what the last norm reads: draws of u, carried back through the head and the norm."""
        weight_VH = self.reference.head_weight()
        logits = reference_logits(self.rows, self._kept[-1])
        for row, length in enumerate(self.rows.lengths):
            found = torch.zeros(DRAWS, len(self.rows.ids(row)), weight_VH.shape[1])
            for at in self.rows.parts(row):
                p_XV = torch.from_numpy(next(logits)).softmax(dim=-1)
                root_XV = p_XV.sqrt()
                for draw in range(DRAWS):
                    signs_XV = torch.randint(2, p_XV.shape, generator=self._random, dtype=torch.int8)
                    u_XV = root_XV * (2 * signs_XV - 1)
                    u_XV -= p_XV * u_XV.sum(dim=-1, keepdim=True)
                    found[draw, at] = _times(u_XV, weight_VH)
            places = self.rows.predicting(row)
            read_BSH = torch.from_numpy(self._kept[-1].read(row))[None].requires_grad_()
            with self.reference.module("final_norm") as norm, torch.enable_grad():
                normed_BSH = norm(read_BSH.to(self.reference.dtype))
            for draw, file in enumerate(gradients):
                given_BSH = torch.zeros(1, length, weight_VH.shape[1])
                given_BSH[0, places] = found[draw]
                file.write(row, _gradient(normed_BSH, read_BSH, given_BSH)[0].numpy())

    def _back(
        self,
        layer: nn.Module,
        rounded: nn.Module,
        number: int,
        row: int,
        names: Sequence[str],
        gradients: Sequence[HiddenRows],
    ) -> dict[str, float]:
        """What each product of a layer adds to the cost, in a row; gradients move to what the layer reads."""
        call, _ = self.reference.enter(self.rows.tensors(row))
        read_BSH = torch.from_numpy(self._kept[number].read(row))[None].requires_grad_()
        seen: dict[str, tuple[Tensor, Tensor]] = {}
        modules = {name: _module(name, number) for name in names}
        hooks = [
            layer.get_submodule(path).register_forward_hook(
                lambda _, given, output, name=name: seen.update({name: (given[0], output)})
            )
            for name, path in modules.items()
        ]
        try:
            with torch.enable_grad():
                output_BSH, _ = layer(read_BSH.to(self.reference.dtype), call.rotary, call.mask_B1ST, call.past(number))
        finally:
            for hook in hooks:
                hook.remove()
        moved = {name: rounded.get_submodule(path)(seen[name][0].detach()) for name, path in modules.items()}
        costs = dict.fromkeys(names, 0.0)
        outputs = [seen[name][1] for name in names]
        for file in gradients:
            given_BSH = torch.from_numpy(file.read(row))[None].to(output_BSH.dtype)
            before, *products = torch.autograd.grad(
                output_BSH, [read_BSH, *outputs], given_BSH, retain_graph=True, allow_unused=False
            )
            file.write(row, before[0].float().numpy())
            for name, gradient, output in zip(names, products, outputs, strict=True):
                along = float((gradient.double() * (moved[name].double() - output.detach().double())).sum())
                costs[name] += along**2 / 2 / len(gradients)
        return costs

    @contextmanager
    def _exchanged(self, number: int, chosen: set[str]) -> Iterator[nn.Module]:
        """A layer, its chosen products rounded."""
        names = [name for name in chosen if name.startswith(f"layers.{number}.")]
        with ExitStack() as stack:
            layer: nn.Module = stack.enter_context(self.reference.layer(number))
            if names:
                rounded = stack.enter_context(self.rounded.layer(number))
                for name in names:
                    path = _module(name, number)
                    stack.callback(_set, layer, path, layer.get_submodule(path))
                    _set(layer, path, rounded.get_submodule(path))
            yield layer

    def _layer_of(self, name: str) -> int:
        return self.layers if name == HEAD else int(name.split(".")[1])

    def _file(self, name: str) -> HiddenRows:
        return self._stack.enter_context(self.rows.hidden(Path(self._scratch.path, name)))


def _that_fit(samples: list[Sample]) -> list[Sample]:
    """Evenly spaced samples of no more than :data:`TOKENS`, at least one."""
    for step in range(1, len(samples) + 1):
        if sum(len(sample.prompt.ids) for sample in samples[::step]) <= TOKENS:
            return samples[::step]
    return samples[:1]


def _module(weight: str, layer: int) -> str:
    return weight.removeprefix(f"layers.{layer}.").removesuffix(".weight")


def _set(layer: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, child = path.rpartition(".")
    setattr(layer.get_submodule(parent), child, module)


def _gradient(output: Tensor, given: Tensor, upstream: Tensor) -> Tensor:
    """Through the last norm, once for each draw."""
    (found,) = torch.autograd.grad(output, [given], upstream.to(output.dtype), retain_graph=True)
    return found.float()


def _times(u_XV: Tensor, weight_VH: Tensor) -> Tensor:
    """``u @ W`` in float32, the weight taken in blocks of the vocabulary."""
    total_XH = torch.zeros(len(u_XV), weight_VH.shape[1])
    for at in blocks(len(weight_VH), 4 * weight_VH.shape[1], 64 << 20):
        total_XH += u_XV[:, at] @ weight_VH[at].float()
    return total_XH
