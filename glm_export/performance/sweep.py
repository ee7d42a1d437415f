"""Every product of a model in every form its weights can have: which is read fastest, and which multiplies fastest.

Weights are random, and so many stand beside each other that none is still in the processor's cache when it is read
again. Forms are measured in turn, so that a machine that slows down slows all of them.

Shapes: K input channels, N output channels.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glm_export.machine.facts import this_machine
from glm_export.machine.scratch import ScratchFolder
from glm_export.performance.bench import PACKAGES
from glm_export.progress import Advance, NullProgress, Progress
from glm_export.spec.config import GlmConfig
from glm_export.spec.weight_formats import BlockWeights, ChannelWeights, QdqWeights, WeightFormat

if TYPE_CHECKING:  # it needs torch
    from glm_export.machine.facts import Machine

FORMS: Mapping[str, WeightFormat | None] = {
    "float32": None,
    "W8A8, per token": QdqWeights(per_token=True, sums_in_16_bits=True),
    "W8A8, per tensor": ChannelWeights(sums_in_16_bits=True),
    **{f"{bits} bits / {block}": BlockWeights(bits=bits, block=block) for bits in (8, 4) for block in (32, 64, 128)},
}
"""What is measured: recipes' forms, by what activations are scaled by, and block weights as bits / block."""
ROWS = (1, 8, 256)
"""Tokens of a call: a step of one row, of eight, and a piece of a prompt."""
MANY = 64
"""Tokens from which on multiplying takes longer than reading: one weight serves."""
CACHE_BYTES = 256 << 20
"""Of weights read between two readings of the same one."""
MOST_COPIES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """One size of linear layer. ``names``: as in a layer. ``count``: in the whole model."""

    names: tuple[str, ...]
    rows_N: int
    columns_K: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FormSpeed:
    """One product in one form. ``nbytes``: of the weight; ``seconds``: of the product, by tokens of a call."""

    form: str
    nbytes: int
    seconds: dict[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepReport:
    """All products of a model in all forms; medians over the rounds."""

    model: str
    threads: int
    rounds: int
    machine: Machine
    products: tuple[tuple[Product, tuple[FormSpeed, ...]], ...]

    def total(self, form: str, tokens: int) -> float:
        """Seconds of all products of a call of so many tokens."""
        return sum(product.count * self._of(speeds, form).seconds[tokens] for product, speeds in self.products)

    def nbytes(self, form: str) -> int:
        """Of all weights."""
        return sum(product.count * self._of(speeds, form).nbytes for product, speeds in self.products)

    def fastest(self, tokens: int) -> list[tuple[Product, FormSpeed]]:
        """Of each product the form that a call of so many tokens is fastest with."""
        return [(product, min(speeds, key=lambda one: one.seconds[tokens])) for product, speeds in self.products]

    @staticmethod
    def _of(speeds: Sequence[FormSpeed], form: str) -> FormSpeed:
        return next(one for one in speeds if one.form == form)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        products = [asdict(product) | {"forms": [asdict(one) for one in speeds]} for product, speeds in self.products]
        return asdict(self) | {"products": products}


def products_of(config: GlmConfig) -> list[Product]:
    """The linear layers of a model by size, largest work first; routed experts are left out."""
    import torch

    from glm_export.modeling import Decoder, building_in, linear_weights

    with torch.device("meta"), building_in(torch.float32):
        model = Decoder(config)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    sizes: Counter[tuple[int, int]] = Counter()
    names: dict[tuple[int, int], dict[str, None]] = {}
    for name in linear_weights(model):
        rows, columns = parameters[name].shape
        sizes[rows, columns] += 1
        names.setdefault((rows, columns), {})[name.removesuffix(".weight").split(".", 2)[-1]] = None
    found = [
        Product(names=tuple(names[size]), rows_N=size[0], columns_K=size[1], count=count)
        for size, count in sizes.items()
    ]
    return sorted(found, key=lambda product: -product.count * product.rows_N * product.columns_K)


def sweep(
    model: str, config: GlmConfig, *, threads: int | None = None, rounds: int = 5, progress: Progress | None = None
) -> SweepReport:
    """Measure every product of a model in every form, in ONNX Runtime on the processor.

    Args:
        model: its name, for the report.
        config: the sizes.
        threads: of one operator; None takes what a session takes.
        rounds: of which the median counts.
        progress: shows rounds of each product; should do nothing between two calls (``shown(still=True)``).
    """
    from glm_export.sessions.onnxruntime.runtime import usable_threads

    used = threads or usable_threads()
    wanted = products_of(config)
    advance = (progress or NullProgress()).task("rounds of products", len(wanted) * (1 + rounds))
    products = tuple((product, _speeds(product, used, rounds, advance)) for product in wanted)
    return SweepReport(model=model, threads=used, rounds=rounds, machine=this_machine(PACKAGES), products=products)


def _speeds(product: Product, threads: int, rounds: int, advance: Advance) -> tuple[FormSpeed, ...]:
    """One product in all forms, in turn."""
    with closing(ScratchFolder()) as scratch:
        timed = {
            name: _Timed(form, product, threads, scratch.path / str(index))
            for index, (name, form) in enumerate(FORMS.items())
        }
        taken: dict[str, dict[int, list[float]]] = {name: {tokens: [] for tokens in ROWS} for name in FORMS}
        for _ in range(rounds + 1):
            for tokens in ROWS:
                for name, one in timed.items():
                    taken[name][tokens].append(one.seconds(tokens))
            advance(1)
        return tuple(
            # The first round warms up.
            FormSpeed(
                form=name,
                nbytes=timed[name].nbytes,
                seconds={tokens: statistics.median(times[1:]) for tokens, times in by_tokens.items()},
            )
            for name, by_tokens in taken.items()
        )


class _Timed:
    """One product in one form, as sessions for few tokens and for many."""

    def __init__(self, form: WeightFormat | None, product: Product, threads: int, folder: Path) -> None:
        from glm_export.graphs.products import write_products
        from glm_export.sessions.onnxruntime.runtime import graph_session

        def session(copies: int) -> Any:
            sizes = product.rows_N, product.columns_K
            graph, nbytes = write_products(
                folder / str(copies), form, rows_N=sizes[0], columns_K=sizes[1], copies=copies
            )
            return graph_session(graph, threads), nbytes

        self._columns = product.columns_K
        self._many, self.nbytes = session(1)
        self._copies = min(max(1, -(-CACHE_BYTES // self.nbytes)), MOST_COPIES)
        self._few = self._many if self._copies == 1 else session(self._copies)[0]

    def seconds(self, tokens: int) -> float:
        """Of one product."""
        few = tokens < MANY
        x = np.random.default_rng(0).standard_normal((tokens, self._columns)).astype(np.float32)
        chosen = self._few if few else self._many
        given = {value.name: x for value in chosen.get_inputs()}
        # Once without looking: threads of the session before are still waiting for work, and on the cores.
        chosen.run(None, given)
        began = time.perf_counter()
        chosen.run(None, given)
        return (time.perf_counter() - began) / (self._copies if few else 1)
