"""Rows taken through a layer by several workers: each sees its own, and what they saw is put together in order.

What depends on the order of rows (moving averages, the last bits of sums) is told row by row and done again where all
of it comes together, so the numbers are those of one process, to the last bit, where the workers compute as it does:
the same kind of processor, and as many threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from glm_export.calibration.layerwise.observe import Seen
from glm_export.calibration.layerwise.passing import Model, Rows, observing, passed
from glm_export.checkpoints.checkpoint import Checkpoint
from glm_export.errors import InputError
from glm_export.modeling import Decoder

SHARD_ROWS = 8
"""Rows of a shard: enough to be worth a message, few enough for memory."""


@dataclass(frozen=True, slots=True)
class Opening:
    """How a worker opens the checkpoint: a function that every machine has, and its arguments, which can be hashed."""

    function: Callable[..., Checkpoint]
    arguments: tuple[Any, ...]

    def checkpoint(self) -> Checkpoint:
        """Open it."""
        return self.function(*self.arguments)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Rows that go through a layer together. ``hidden``: what it reads, float32 ``[S, H]`` each.

    ``identity``: of the checkpoint that is meant; ``threads``: how many compute.
    """

    opening: Opening
    identity: str
    layer: int
    device: str
    threads: int
    rows: Rows
    hidden: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Passed:
    """What came of a shard: what was seen, and the layer's outputs, float32 ``[S, H]`` each."""

    seen: Seen
    hidden: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Spread:
    """Workers. ``each``: applies a function to every shard, and yields what came of them in their order."""

    each: Callable[[Callable[[Shard], Passed], Iterable[Shard]], Iterator[Passed]]
    opening: Opening


def passed_by_workers(
    spread: Spread, model: Model, layer: int, rows: Rows, hidden: Iterator[Tensor], seen: Seen
) -> Iterator[Tensor]:
    """A layer's output for each row, as :func:`~.passing.passed` has it; what was seen is added to ``seen``.

    Raises:
        InputError: a worker's checkpoint is another one, or activations are NaN or infinite.
    """
    for one in spread.each(take_through, _shards(spread, model, layer, rows, hidden)):
        seen.merge(one.seen)
        yield from one.hidden


def _shards(spread: Spread, model: Model, layer: int, rows: Rows, hidden: Iterator[Tensor]) -> Iterator[Shard]:
    before, identity = rows.before, _identity(model.checkpoint)
    for start in range(0, len(rows.samples), SHARD_ROWS):
        samples = rows.samples[start : start + SHARD_ROWS]
        read = tuple(islice(hidden, len(samples)))
        yield Shard(
            opening=spread.opening,
            identity=identity,
            layer=layer,
            device=model.device.type,
            threads=torch.get_num_threads(),
            rows=Rows(samples=samples, before=before, total=rows.total),
            hidden=read,
        )
        before += sum(len(hidden_SH) for hidden_SH in read)


def take_through(shard: Shard) -> Passed:
    """What a worker does with a shard; the layer stays in its memory for the next one.

    Raises:
        InputError: its checkpoint is another one, or activations are NaN or infinite.
    """
    torch.set_num_threads(shard.threads)
    with torch.inference_mode():
        model, decoder, module = _loaded(shard.opening, shard.layer, shard.device)
        if _identity(model.checkpoint) != shard.identity:
            raise InputError(
                f"a worker's {model.checkpoint.identity.name} is another checkpoint; give every node the same"
            )
        seen = Seen(batches=True)
        with observing(module, shard.layer, model.config, seen) as observer:
            hidden = tuple(passed(model, decoder, module, shard.layer, shard.rows, shard.hidden, observer))
    return Passed(seen, hidden)


@lru_cache(maxsize=1)
def _opened(opening: Opening, device: str) -> tuple[Model, Decoder]:
    model = Model(checkpoint=opening.checkpoint(), device=torch.device(device))
    return model, model.entrance()


@lru_cache(maxsize=1)
def _loaded(opening: Opening, layer: int, device: str) -> tuple[Model, Decoder, nn.Module]:
    model, decoder = _opened(opening, device)
    return model, decoder, model.layer(layer)


def _identity(checkpoint: Checkpoint) -> str:
    return repr(checkpoint.identity.to_json())
