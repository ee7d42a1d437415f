"""How weights are stored and multiplied: one frozen record a format.

A record says which tensors stand for a weight. What else a format needs is found by the record's type: encoding and
decoding in ``calibration/formats``, its operator in ``graphs/rules``. So a new format is a record here and a file in
each of the two.

Shapes: K input channels, N output channels, C = ceil(K / block) blocks a channel.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

from glm_export.errors import InputError, alternatives
from glm_export.spec.batch_invariance import BatchInvariance
from glm_export.spec.config import GlmConfig
from glm_export.spec.signature import TensorSpec

HEAD, EMBEDDING = "head.weight", "embedding.weight"
PROMPT_TOKENS = 8
"""Calls with more tokens than this, over all rows, compute with a weight's ``prefill`` format where it has one: about
where integer products overtake 4-bit ones on a CPU with VNNI (Zen 5, two threads)."""
BITS = (4, 8)
BLOCKS = (16, 32, 64, 128, 256)
QMAX = {"int8": 127, "int4": 7, "float8e4m3fn": 448}
"""The largest value of a stored dtype that symmetric rounding uses."""


PACKED, SCALES, ZERO_POINTS = "packed", "scales", "zero_points"
PROMPT = ".prompt"
"""Behind the name of a weight that has a second format for prompts."""


class WeightFormat(ABC):
    """How one weight ``[N, K]`` is stored, and what its product does to activations."""

    __slots__ = ()

    @abstractmethod
    def stored_tensors(self, name: str, rows_N: int, columns_K: int, dtype: str) -> list[TensorSpec]:
        """The tensors that stand for the weight, in file order.

        Args:
            name: of the parameter.
            rows_N: output channels.
            columns_K: input channels.
            dtype: of the program, which scales have unless the operator wants another.
        """

    @property
    def explicit_dtype(self) -> str | None:
        """What ``DequantizeLinear`` reads, where the product stays a ``MatMul``; else None."""
        return None

    @property
    def explicit(self) -> bool:
        """Whether the product stays a ``MatMul``."""
        return self.explicit_dtype is not None

    @property
    def scale_block(self) -> int | None:
        """Neighbours along K that share a scale; None: a whole channel."""
        return None

    @property
    def activation_dtype(self) -> str | None:
        """What inputs are rounded to, with scales that calibration found; None where they are not."""
        return None

    @property
    def rounds_each_token(self) -> bool:
        """Whether inputs are rounded as they come, with one scale for each row."""
        return False

    @property
    def multiplies_integers(self) -> bool:
        """Whether a runtime may multiply int8 by int8, and adds the products as its processor does."""
        return False

    @property
    def batch_invariance(self) -> BatchInvariance:
        """How far a row of the product depends on other rows of the input."""
        return BatchInvariance.EXACT


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockWeights(WeightFormat):
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
            raise InputError(
                f"block weights have {alternatives(BITS)} bits, in blocks of {alternatives(BLOCKS)}; found {self.bits} "
                f"bits in blocks of {self.block}"
            )

    def stored_tensors(self, name: str, rows_N: int, columns_K: int, dtype: str) -> list[TensorSpec]:
        """Integers uint8, scales ``[N, C]``, and zero points where there are any."""
        blocks = -(-columns_K // self.block)
        blob = self.block * self.bits // 8
        # A table's row lies in one piece, a product's block by block: the same bytes.
        dims = (rows_N, blocks * blob) if name == EMBEDDING else (rows_N, blocks, blob)
        parts = [
            TensorSpec(name=f"{name}.{PACKED}", dtype="uint8", dims=dims),
            TensorSpec(name=f"{name}.{SCALES}", dtype=dtype, dims=(rows_N, blocks)),
        ]
        if not self.symmetric:
            width = -(-blocks * self.bits // 8)
            parts.append(TensorSpec(name=f"{name}.{ZERO_POINTS}", dtype="uint8", dims=(rows_N, width)))
        return parts

    @property
    def scale_block(self) -> int:
        """``block``."""
        return self.block

    @property
    def batch_invariance(self) -> BatchInvariance:
        """Close: MatMulNBits multiplies one row by another kernel than several (1e-6)."""
        return BatchInvariance.CLOSE


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertWeights(BlockWeights):
    """Weights of a layer's experts, ``[E, N, K]``, as ``QMoE`` reads them: each expert's are block weights.

    Symmetric, and K is a multiple of the block. With ``accuracy_level`` 4 activations are rounded to 8 bits a block;
    0 keeps them where integers have 4 bits, and of 8 bits the operator has no such kernel.
    """

    def stacked_tensors(self, name: str, experts_E: int, rows_N: int, columns_K: int, dtype: str) -> list[TensorSpec]:
        """Integers uint8 ``[E, N, K * bits / 8]``, and scales ``[E, N, K / block]``."""
        packed = columns_K * self.bits // 8
        return [
            TensorSpec(name=f"{name}.{PACKED}", dtype="uint8", dims=(experts_E, rows_N, packed)),
            TensorSpec(name=f"{name}.{SCALES}", dtype=dtype, dims=(experts_E, rows_N, columns_K // self.block)),
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelWeights(WeightFormat):
    """8-bit integers, symmetric, one scale per output channel: ``[K, N]`` has scales ``[N]``.

    Activations are rounded to 8 bits as they come, with one scale for the whole tensor. So the rounding of a row
    depends on the rows beside it, in a batch and in a prompt. ``sums_in_16_bits``: as in :class:`QdqWeights`.
    """

    sums_in_16_bits: bool = False

    def stored_tensors(self, name: str, rows_N: int, columns_K: int, dtype: str) -> list[TensorSpec]:  # noqa: ARG002
        """Integers int8 ``[K, N]``; scales ``[N]`` are float32 whatever the program's dtype."""
        return [
            TensorSpec(name=f"{name}.{PACKED}", dtype="int8", dims=(columns_K, rows_N)),
            TensorSpec(name=f"{name}.{SCALES}", dtype="float32", dims=(rows_N,)),
        ]

    @property
    def multiplies_integers(self) -> bool:
        """They always are."""
        return True

    @property
    def batch_invariance(self) -> BatchInvariance:
        """None: one scale serves all rows."""
        return BatchInvariance.NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class QdqWeights(WeightFormat):
    """Explicit quantization: ``DequantizeLinear(weight) -> MatMul``, symmetric, zero point 0, positive scales.

    ``dtype``: a key of :data:`QMAX`. ``block`` None: one scale per output channel, ``[K, N]`` has scales ``[N]`` on
    axis 1. Otherwise ``block`` neighbours along axis 0 share one: scales ``[ceil(K / block), N]``. ``activations``: the
    product's input goes through ``QuantizeLinear -> DequantizeLinear`` in the same dtype, with one scale per tensor
    that calibration found. ``per_token``: as they come, each row divided by its largest magnitude before, and the
    product multiplied by it. So a runtime may multiply integers, and one that cannot computes the same in floats.
    ``sums_in_16_bits``: scales are such that two neighbouring products never leave 16 bits (``docs/adr/0028``).
    """

    dtype: str = "int8"
    block: int | None = None
    activations: bool = False
    per_token: bool = False
    sums_in_16_bits: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in QMAX or (self.block is not None and self.block not in BLOCKS):
            raise InputError(
                f"Q/DQ weights are {alternatives(QMAX)}, in blocks of {alternatives(BLOCKS)} or none; found "
                f"{self.dtype} in blocks of {self.block}"
            )
        if self.per_token and (self.activations or self.dtype != "int8" or self.block is not None):
            raise InputError(
                "tokens have scales of their own beside int8 weights with one scale per channel alone; found "
                f"{self.dtype}, blocks of {self.block}, calibrated activations {self.activations}"
            )
        if self.sums_in_16_bits and not self.multiplies_integers:
            raise InputError("sums in 16 bits are asked of int8 weights that int8 activations are multiplied by")

    def stored_tensors(self, name: str, rows_N: int, columns_K: int, dtype: str) -> list[TensorSpec]:
        """Values ``[K, N]``, and scales ``[N]`` or ``[C, N]``."""
        scales = (rows_N,) if self.block is None else (-(-columns_K // self.block), rows_N)
        return [
            TensorSpec(name=f"{name}.{PACKED}", dtype=self.dtype, dims=(columns_K, rows_N)),
            TensorSpec(name=f"{name}.{SCALES}", dtype=dtype, dims=scales),
        ]

    @property
    def explicit_dtype(self) -> str:
        """``dtype``."""
        return self.dtype

    @property
    def scale_block(self) -> int | None:
        """``block``."""
        return self.block

    @property
    def activation_dtype(self) -> str | None:
        """The weight's own, with ``activations``."""
        return self.dtype if self.activations else None

    @property
    def rounds_each_token(self) -> bool:
        """``per_token``."""
        return self.per_token

    @property
    def multiplies_integers(self) -> bool:
        """Whether a runtime may multiply int8 by int8, and adds the products as its processor does."""
        return self.dtype == "int8" and self.block is None and (self.per_token or self.activations)

    @property
    def batch_invariance(self) -> BatchInvariance:
        """Exact where integers are multiplied; of weights alone a runtime may make MatMulNBits, which is close."""
        return BatchInvariance.EXACT if self.per_token or self.activations else BatchInvariance.CLOSE


GATE_UP, DOWN = "mlp.gate_up", "mlp.down"
"""Within a layer of experts: the stacks of their weights, named like no linear layer's weight."""


def expert_stacks(config: GlmConfig) -> list[str]:
    """Parameter names of the routed experts' weights, ``[E, 2 F, H]`` and ``[E, H, F]`` of each layer in turn."""
    return [f"layers.{layer}.{stack}" for layer in config.expert_layers for stack in (GATE_UP, DOWN)]


class WeightFormats(NamedTuple):
    """What one weight is stored as: ``decode`` for a few tokens at once, ``prefill`` for many where that differs."""

    decode: WeightFormat
    prefill: WeightFormat | None = None

    def of(self, tokens: int) -> WeightFormat:
        """The format a call with that many tokens computes with."""
        return self.prefill if self.prefill is not None and tokens > PROMPT_TOKENS else self.decode
