"""How official tensors become reference parameters: a name table, and layout functions with names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TYPE_CHECKING

from glm_export.spec.config import GlmConfig, Norm

if TYPE_CHECKING:  # families are read by runtimes that need no torch
    from torch import Tensor

Shape = tuple[int, ...]
Layout = Callable[[Sequence["Tensor"]], "Tensor"]


def as_stored(sources: Sequence[Tensor]) -> Tensor:
    """The one source, untouched."""
    (source,) = sources
    return source


def stack_rows(sources: Sequence[Tensor]) -> Tensor:
    """Several projections of the same input become one: ``[a, H], [b, H] -> [a + b, H]``."""
    import torch

    return torch.cat(list(sources))


@dataclass(frozen=True, slots=True)
class HeadwiseQkv:
    """Rows stored as head 0: ``q k v``, head 1: ``q k v``, … become all q, all k, all v.

    ``[N * 3 * D, H] -> [3 * N * D, H]`` (biases likewise). The layout of ChatGLM-6B, and of ChatGLM2 without
    multi-query attention.

    With two rotary ``axes`` (ChatGLM-6B) the channels of each q and k head are dealt anew as well. The official code
    turns each half of a head by a position of its own, pairing channel ``i`` with ``i + D / 4`` inside the half:
    a head is ``[first axis: low high | second axis: low high]``. Here it becomes
    ``[low: first second | high: first second]``, so that one rotation of pairs ``(i, i + D / 2)`` does both.
    Scores do not change: q and k are dealt alike.
    """

    num_heads: int
    axes: int = 1

    def __call__(self, sources: Sequence[Tensor]) -> Tensor:
        """Reorder the rows of the one source."""
        (rows,) = sources
        # Head by head in the file; axis 1 is which of the three.
        q, k, v = rows.reshape(self.num_heads, 3, -1, *rows.shape[1:]).unbind(1)
        import torch

        return torch.cat([self.deal(q), self.deal(k), v]).flatten(0, 1)

    def deal(self, heads: Tensor) -> Tensor:
        """Channels of q or k heads ``[N, D, …]``: axis by axis becomes low and high."""
        return heads.reshape(len(heads), self.axes, 2, -1, *heads.shape[2:]).transpose(1, 2).reshape(heads.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightRule:
    """One reference parameter: which official tensors it is made of, their shapes, and how.

    With ``each`` the parameter is a stack, and every ``each`` sources make one slice of its leading axis: a layer's
    experts are read one by one, never all at once.
    """

    target: str
    sources: tuple[str, ...]
    shapes: tuple[Shape, ...]
    layout: Layout = as_stored
    each: int | None = None


@dataclass(frozen=True, kw_only=True)
class WeightMap:
    """Everything a family says about its weight files.

    ``ignored`` maps patterns of official names (``*`` stands for anything) to the reason why they are not loaded.
    ``prefixes`` are what some releases put before names and others do not: each with what stands there officially.
    ``head_copy`` is the name of the head of its own that files of a tied model may hold too; empty: none ever does.
    """

    rules: tuple[WeightRule, ...]
    ignored: dict[str, str]
    prefixes: tuple[tuple[str, str], ...] = ()
    head_copy: str = ""

    @cached_property
    def expected(self) -> dict[str, Shape]:
        """The shape of every official tensor a rule reads."""
        return {source: shape for rule in self.rules for source, shape in zip(rule.sources, rule.shapes, strict=True)}

    @cached_property
    def base_prefix(self) -> str:
        """What the layers' names begin with, ``model.`` or ``transformer.``: files of the bare decoder leave it out."""
        inner = next((source for rule in self.rules for source in rule.sources if "layers." in source), "")
        return inner.split(".")[0] + "." if inner and not inner.startswith("layers.") else ""

    def renamed(self, name: str) -> str:
        """The name without what some releases put before it."""
        for prefix, official in self.prefixes:
            if name.startswith(prefix):
                return official + name.removeprefix(prefix)
        return name

    def official(self, name: str) -> str:
        """The official name of one in a file: what some put before it taken off, what some leave out put back."""
        plain = self.renamed(name)
        return self.base_prefix + plain if self.base_prefix + plain in self.expected else plain

    def ignores(self, name: str) -> bool:
        """Whether an official tensor is known and left aside."""
        return any(fnmatchcase(name, pattern) for pattern in self.ignored)


def rule(target: str, source: str, *shape: int, layout: Layout = as_stored) -> WeightRule:
    """A parameter made of one official tensor."""
    return WeightRule(target=target, sources=(source,), shapes=(shape,), layout=layout)


def norm_rules(target: str, source: str, config: GlmConfig) -> list[WeightRule]:
    """A norm's weight, and its bias where it is a LayerNorm."""
    parts = ("weight",) if config.norm is Norm.RMS else ("weight", "bias")
    return [rule(f"{target}.{part}", f"{source}.{part}", config.hidden_size) for part in parts]


def linear_rules(
    target: str, source: str, rows: int, columns: int, *, bias: bool, layout: Layout = as_stored
) -> list[WeightRule]:
    """A linear layer ``[rows, columns]`` made of one official one."""
    weight = rule(f"{target}.weight", f"{source}.weight", rows, columns, layout=layout)
    return [weight, rule(f"{target}.bias", f"{source}.bias", rows, layout=layout)] if bias else [weight]
