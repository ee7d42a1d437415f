"""A recipe: in which form each weight is stored and multiplied, as one frozen value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from glm_export.errors import InputError

HEAD, EMBEDDING = "head.weight", "embedding.weight"
PROMPT_TOKENS = 8
"""Calls with more tokens than this, over all rows, compute with a recipe's ``prompt`` form where it has one: about
where integer products overtake 4-bit ones on a CPU with VNNI (Zen 5, two threads)."""
ROUTED_BOUND = 0.5
"""A rounded activation can send a token to another expert, and its values jump: golden GLM-4.5 needs 0.25."""
BITS = (4, 8)
BLOCKS = (16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockWeights:
    """Integers with one scale for ``block`` neighbours along the input axis: ``[N, K]`` has scales ``[N, K / block]``.

    Symmetric: the value of largest magnitude takes the lowest integer, zero is exact, and there are no zero points.
    Asymmetric: smallest and largest value take both ends, and each block has a zero point.
    ``accuracy_level``: 4 multiplies with activations rounded to 8 bits a block, 0 in the activations' own dtype.
    """

    bits: int
    block: int
    symmetric: bool = True
    accuracy_level: int = 4

    def __post_init__(self) -> None:
        if self.bits not in BITS or self.block not in BLOCKS:
            raise InputError(f"block weights have {BITS} bits in blocks of {BLOCKS}; found {self.bits}, {self.block}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelWeights:
    """8-bit integers, symmetric, one scale an output channel: ``[K, N]`` has scales ``[N]``.

    Activations are rounded to 8 bits as they come, with one scale for the whole tensor. So the rounding of a row
    depends on the rows beside it, in a batch and in a prompt.
    """


WeightForm = BlockWeights | ChannelWeights


class Forms(NamedTuple):
    """What one weight is stored as: ``step`` for a few tokens at once, and ``prompt`` for many where that differs."""

    step: WeightForm
    prompt: WeightForm | None = None

    def of(self, tokens: int) -> WeightForm:
        """The form a call with that many tokens computes with."""
        return self.prompt if self.prompt is not None and tokens > PROMPT_TOKENS else self.step


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What is quantized, and how.

    ``layers``: form of the linear layers' weights. ``head``: of the last product; None spares it. ``prompt``: a second
    form of the same layers that reads prompts, kept beside the first, which then decodes. ``embedding``: of the table
    tokens are looked up in, which costs no speed and leaves 9 bits of a value; None spares it. ``dialects`` and
    ``dtypes``: where the form has operators. ``bound``: what ``check`` grants the rounding of activations, as a share
    of an output's largest value; weights are rounded in its reference as well.
    """

    name: str
    summary: str
    layers: WeightForm
    head: WeightForm | None
    dialects: frozenset[str]
    dtypes: frozenset[str]
    bound: float
    prompt: WeightForm | None = None
    embedding: BlockWeights | None = BlockWeights(bits=8, block=32)

    def forms(self, linear_weights: list[str], hidden_size: int) -> dict[str, Forms]:
        """The forms of each linear layer's weight and the embedding, by parameter name; spared ones are missing.

        An embedding whose rows are no multiple of its block is spared too: its operator cuts no block short.
        """
        table = {}
        if self.embedding is not None and hidden_size % self.embedding.block == 0:
            table[EMBEDDING] = Forms(self.embedding)
        return table | self._linear_forms(linear_weights)

    def _linear_forms(self, linear_weights: list[str]) -> dict[str, Forms]:
        chosen = {name: (self.head, None) if name == HEAD else (self.layers, self.prompt) for name in linear_weights}
        return {name: Forms(step, prompt) for name, (step, prompt) in chosen.items() if step is not None}

    def granted(self, *, experts: bool) -> float:
        """:attr:`bound`, or where tokens are routed :data:`ROUTED_BOUND`."""
        return max(self.bound, ROUTED_BOUND) if experts else self.bound

    def refuse_unfit(self, dialect: str, dtype: str) -> None:
        """See that dialect and dtype can carry the recipe.

        Raises:
            InputError: naming those that can.
        """
        for option, value, known in (("dialect", dialect, self.dialects), ("dtype", dtype, self.dtypes)):
            if value not in known:
                raise InputError(
                    f"recipe {self.name} needs --{option} {' or '.join(sorted(known))}; found {option} {value}"
                )
