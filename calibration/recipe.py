"""A recipe: in which form each weight is stored and multiplied, as one frozen value."""

from __future__ import annotations

from dataclasses import dataclass

from glm_export.errors import InputError

HEAD = "head.weight"
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What is quantized, and how.

    ``layers``: form of the linear layers' weights. ``head``: of the last product; None spares it. ``dialects`` and
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

    def forms(self, linear_weights: list[str]) -> dict[str, WeightForm]:
        """The form of each linear layer's weight, by parameter name; spared ones are missing."""
        forms = {name: self.head if name == HEAD else self.layers for name in linear_weights}
        return {name: form for name, form in forms.items() if form is not None}

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
