"""What is measured while rows of text pass through one layer: inputs of products, keys and values, maxima.

Shapes: S tokens of a row, K input channels, N query heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from glm_export.calibration.methods.gptq import GramMatrix
from glm_export.calibration.observers.statistics import OBSERVERS, TensorStatistics
from glm_export.calibration.ranges import (
    CHANNEL_MAXIMA,
    CHANNEL_MEANS,
    KEY,
    MAXIMA,
    THRESHOLDS,
    TOKEN_MAXIMA,
    VALUE,
)  # fmt: skip
from glm_export.errors import InputError
from glm_export.graphs.patterns.rotary import Rotation
from glm_export.modeling import ROUTER, Attention, KeyValue

SCORES = "attention.scores"
INPUT = ".input"
Numbers = dict[str, NDArray[Any]]


class Seen:
    """What was seen of one layer: of products' inputs, of keys and values, and the largest value in each place.

    ``batches``: whether what depends on the rows' order is kept of each, so that another can take it in.
    """

    def __init__(self, *, batches: bool = False) -> None:
        self.batches = batches
        self.inputs: dict[str, TensorStatistics] = {}
        self.kept: dict[str, TensorStatistics] = {}
        self.maxima: dict[str, float] = {}
        self.kept_rows: dict[str, list[Tensor]] = {}

    def samples(self, weight: str) -> Tensor:
        """The inputs kept of a product, float32 ``[R, K]``."""
        return torch.cat(self.kept_rows[weight])

    def merge(self, later: Seen) -> None:
        """Take in what was seen of rows behind these: the same bits as if they had passed here.

        Raises:
            InputError: it did not keep what depends on their order.
        """
        for name, statistics in later.inputs.items():
            self.inputs.setdefault(name, TensorStatistics(len(statistics.channels.sums_K))).merge(statistics)
            self.kept_rows.setdefault(name, []).extend(later.kept_rows[name])
        for name, statistics in later.kept.items():
            self.kept.setdefault(name, TensorStatistics(len(statistics.channels.sums_K))).merge(statistics)
        for name, largest in later.maxima.items():
            self.maxima[name] = max(self.maxima.get(name, 0.0), largest)

    def numbers(self) -> Numbers:
        """Everything as arrays, under the names of a ranges file.

        Raises:
            InputError: a tensor was all zero.
        """
        numbers: Numbers = {name + MAXIMA: np.array([value], np.float32) for name, value in self.maxima.items()}
        for name, statistics in (*self.inputs.items(), *self.kept.items()):
            thresholds = named(name, statistics.thresholds)
            channels = statistics.channels
            numbers[name + THRESHOLDS] = np.array([thresholds[key] for key in OBSERVERS], np.float32)
            numbers[name + CHANNEL_MAXIMA] = channels.maxima_K.float().numpy()
            numbers[name + CHANNEL_MEANS] = (channels.sums_K / max(1, channels.count)).float().numpy()
            numbers[name + TOKEN_MAXIMA] = np.array([statistics.tokens.least, statistics.tokens.largest], np.float32)
        return numbers


class LayerObserver:
    """Hooks on a module's parts; what they see is added to ``seen``.

    ``past``: keys and values ``[1, K, P, D]`` that stand before each row, kept with its own. ``rows_to_keep``: which of
    a row's tokens are kept as samples.
    """

    def __init__(self, module: nn.Module, prefix: str, seen: Seen, *, gram: bool = False) -> None:
        self.prefix, self.seen = prefix, seen
        self.grams: dict[str, GramMatrix] = {}
        self.rotary: Rotation | None = None
        self.past: KeyValue | None = None
        self.rows_to_keep: Tensor = torch.empty(0, dtype=torch.int64)
        self._hooks: list[Any] = []
        for name, part in module.named_modules():
            self._watch(name, part, gram=gram)

    def _watch(self, name: str, part: nn.Module, *, gram: bool) -> None:
        place = f"{self.prefix}.{name}" if name else self.prefix
        if isinstance(part, nn.Linear) and not name.endswith(ROUTER):
            weight = f"{place}.weight"
            self.seen.inputs[weight] = TensorStatistics(part.in_features, batches=self.seen.batches)
            self.seen.kept_rows[weight] = []
            if gram:
                self.grams[weight] = GramMatrix(part.in_features, device=part.weight.device)
            self._hooks.append(part.register_forward_pre_hook(partial(self._see_input, weight)))
        if isinstance(part, Attention):
            for kind in (KEY, VALUE):
                self.seen.kept[f"{self.prefix}.{kind}"] = TensorStatistics(
                    part.config.kv_size, batches=self.seen.batches
                )
            self._hooks.append(part.qkv.register_forward_hook(partial(self._see_projection, part)))
        if not isinstance(part, nn.Identity):
            self._hooks.append(part.register_forward_pre_hook(partial(self._see_maximum, f"{place}{INPUT}")))
            self._hooks.append(part.register_forward_hook(partial(self._see_output, place)))

    def close(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()

    def _see_input(self, weight: str, _: nn.Module, given: tuple[Tensor]) -> None:
        rows_SK = given[0].detach().flatten(0, -2)
        named(weight, partial(self.seen.inputs[weight].observe, rows_SK))
        self.seen.kept_rows[weight].append(rows_SK[self.rows_to_keep.to(rows_SK.device)].float().cpu())
        if weight in self.grams:
            self.grams[weight].add(rows_SK)

    def _see_projection(self, attention: Attention, _: nn.Module, __: tuple[Tensor], qkv_BSC: Tensor) -> None:
        q_BSC, k_BSC, v_BSC = attention.rotated_qkv(qkv_BSC, self.rotary)
        if self.past is not None:
            k_BSC, v_BSC = (
                torch.cat([past_1KPD.transpose(1, 2).flatten(2), new_BSC], dim=1)
                for past_1KPD, new_BSC in zip(self.past, (k_BSC, v_BSC), strict=True)
            )
        for kind, values in ((KEY, k_BSC), (VALUE, v_BSC)):
            name = f"{self.prefix}.{kind}"
            named(name, partial(self.seen.kept[name].observe, values.flatten(0, -2)))
        config = attention.config
        group = config.num_heads // config.kv_heads
        # The largest score needs one head's [S, G, T] at a time; all heads at once would be the walk's largest tensor.
        q_SKGD = q_BSC[0].reshape(-1, config.kv_heads, group, config.head_dim) * config.head_dim**-0.5
        k_TKD = k_BSC[0].reshape(-1, config.kv_heads, config.head_dim)
        largest = max(
            float(torch.einsum("sgd,td->sgt", q_SKGD[:, head], k_TKD[:, head]).abs().max())
            for head in range(config.kv_heads)
        )
        self._raise_maximum(f"{self.prefix}.{SCORES}", largest)

    def _see_maximum(self, place: str, _: nn.Module, given: tuple[Any, ...]) -> None:
        self._raise_maximum(place, float(given[0].abs().max()))

    def _see_output(self, place: str, _: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        values = output[0] if isinstance(output, tuple) else output
        self._raise_maximum(place, float(values.abs().max()))

    def _raise_maximum(self, place: str, largest: float) -> None:
        # Written so that NaN, which compares false, is caught too.
        if not largest < float("inf"):
            raise InputError(
                f"{place}: NaN or infinity among activations; the checkpoint is damaged, or its training diverged"
            )
        maxima = self.seen.maxima
        maxima[place] = max(maxima.get(place, 0.0), largest)


def named(name: str, call: Callable[[], Any]) -> Any:
    """A refusal says which tensor it is about."""
    try:
        return call()
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
