"""How weights are stored and multiplied, as plain records.

Shapes: K input channels, N output channels, C = ceil(K / block) blocks a channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from glm_export.errors import InputError
from glm_export.spec.signature import TensorSpec

HEAD, EMBEDDING = "head.weight", "embedding.weight"
PROMPT_TOKENS = 8
"""Calls with more tokens than this, over all rows, compute with a recipe's ``prompt`` form where it has one: about
where integer products overtake 4-bit ones on a CPU with VNNI (Zen 5, two threads)."""
BITS = (4, 8)
BLOCKS = (16, 32, 64, 128, 256)
QMAX = {"int8": 127, "int4": 7, "float8e4m3fn": 448}
"""The largest value of a stored dtype that symmetric rounding uses."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class QdqWeights:
    """Explicit quantization: ``DequantizeLinear(weight) -> MatMul``, symmetric, zero point 0, positive scales.

    ``dtype``: a key of :data:`QMAX`. ``block`` None: one scale an output channel, ``[K, N]`` has scales ``[N]`` on
    axis 1. Otherwise ``block`` neighbours along axis 0 share one: scales ``[ceil(K / block), N]``. ``activations``: the
    product's input goes through ``QuantizeLinear -> DequantizeLinear`` in the same dtype, with one scale a tensor
    that calibration found. So a runtime may multiply integers, and one that cannot computes the same in floats.
    """

    dtype: str = "int8"
    block: int | None = None
    activations: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in QMAX or (self.block is not None and self.block not in BLOCKS):
            raise InputError(
                f"Q/DQ weights are {', '.join(QMAX)} with blocks of {BLOCKS} or none; found {self.dtype}, {self.block}"
            )


WeightFormat = BlockWeights | ChannelWeights | QdqWeights


class WeightFormats(NamedTuple):
    """What one weight is stored as: ``step`` for a few tokens at once, and ``prompt`` for many where that differs."""

    decode: WeightFormat
    prefill: WeightFormat | None = None

    def of(self, tokens: int) -> WeightFormat:
        """The form a call with that many tokens computes with."""
        return self.prefill if self.prefill is not None and tokens > PROMPT_TOKENS else self.decode


PACKED, SCALES, ZERO_POINTS = "packed", "scales", "zero_points"
PROMPT = ".prompt"
"""Behind the name of a weight that has a second form for prompts."""


def stored_parts(name: str, rows: int, columns: int, form: WeightFormat, dtype: str) -> list[TensorSpec]:
    """The tensors that stand for a weight ``[N, K]``, in file order; scales have the program's dtype."""
    if isinstance(form, ChannelWeights):
        return [
            TensorSpec(name=f"{name}.{PACKED}", dtype="int8", dims=(columns, rows)),
            TensorSpec(name=f"{name}.{SCALES}", dtype="float32", dims=(rows,)),
        ]
    if isinstance(form, QdqWeights):
        scales = (rows,) if form.block is None else (-(-columns // form.block), rows)
        return [
            TensorSpec(name=f"{name}.{PACKED}", dtype=form.dtype, dims=(columns, rows)),
            TensorSpec(name=f"{name}.{SCALES}", dtype=dtype, dims=scales),
        ]
    blocks = -(-columns // form.block)
    blob = form.block * form.bits // 8
    # A table's row lies in one piece, a product's block by block: the same bytes.
    dims = (rows, blocks * blob) if name == EMBEDDING else (rows, blocks, blob)
    parts = [
        TensorSpec(name=f"{name}.{PACKED}", dtype="uint8", dims=dims),
        TensorSpec(name=f"{name}.{SCALES}", dtype=dtype, dims=(rows, blocks)),
    ]
    if not form.symmetric:
        width = -(-blocks * form.bits // 8)
        parts.append(TensorSpec(name=f"{name}.{ZERO_POINTS}", dtype="uint8", dims=(rows, width)))
    return parts
