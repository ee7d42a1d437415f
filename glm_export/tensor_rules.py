"""How official tensors become reference parameters: a name table, and layout functions with names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Shape = tuple[int, ...]
Layout = Callable[[Sequence[Tensor]], Tensor]


def as_stored(sources: Sequence[Tensor]) -> Tensor:
    """The one source, untouched."""
    (source,) = sources
    return source


def stack_rows(sources: Sequence[Tensor]) -> Tensor:
    """Several projections of the same input become one: ``[a, H], [b, H] -> [a + b, H]``."""
    return torch.cat(list(sources))


@dataclass(frozen=True, slots=True)
class HeadwiseQkv:
    """Rows stored as head 0: ``q k v``, head 1: ``q k v``, … become all q, all k, all v.

    ``[N * 3 * D, H] -> [3 * N * D, H]`` (biases likewise). ChatGLM2's layout without multi-query attention.
    """

    num_heads: int

    def __call__(self, sources: Sequence[Tensor]) -> Tensor:
        """Reorder the rows of the one source."""
        (rows,) = sources
        return rows.reshape(self.num_heads, 3, -1, *rows.shape[1:]).transpose(0, 1).flatten(0, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRule:
    """One reference parameter: which official tensors it is made of, their shapes, and how."""

    target: str
    sources: tuple[str, ...]
    shapes: tuple[Shape, ...]
    layout: Layout = as_stored


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRules:
    """Everything a family says about its weight files.

    ``ignored`` maps the end of an official name to the reason why it is not loaded.
    """

    rules: tuple[TensorRule, ...]
    ignored: dict[str, str]

    def ignores(self, name: str) -> bool:
        """Whether an official tensor is known and left aside."""
        return any(name.endswith(ending) for ending in self.ignored)


def rule(target: str, source: str, *shape: int, layout: Layout = as_stored) -> TensorRule:
    """A parameter made of one official tensor."""
    return TensorRule(target=target, sources=(source,), shapes=(shape,), layout=layout)
