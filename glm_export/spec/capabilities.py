"""What the runtimes of a dialect can do, as far as recipes, exporters, sessions and builders ask.

A dialect states it once (``graphs/dialects``); nobody asks for a dialect by its name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from glm_export.errors import InputError
from glm_export.spec.config import GlmConfig

LATER_QDQ_OPSET = 21
"""The opset whose Q/DQ take float16 scales, 4-bit integers, 8-bit floats and blocks."""


class IntegerCache(Enum):
    """Which operator of a program rounds new keys and values, where they are kept as int8."""

    CONCAT = "concat"
    ATTENTION = "attention"
    FUSED = "fused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """One dialect's.

    ``stored_products``: there are operators for weights in formats that are not explicit (float32 and float16).
    ``qdq_dtypes``: what explicit weights may be; ``qdq_blocks``: in blocks, too; ``half_scales``: their scales may be
    float16 and bfloat16. ``integer_cache``: how int8 keys and values are kept; None where they cannot be.
    ``grouped_experts``: there is an operator that computes a token's own experts alone, from stacked weights whose rows
    are as they are, those of gate and up in turn; elsewhere every expert sees every token.
    ``sums_in_16_bits``: processors that are reached by it may add two 8-bit products in 16 bits.
    ``recent_logits``: a program can tell the logits of each row's last few tokens.
    ``implicit_int8``: its runtimes can quantize a float program by a calibration cache. ``tensorrt``: TensorRT's parser
    reads it; ``tensorrt_needs``: where it has a call of this name.
    """

    stored_products: bool = False
    qdq_dtypes: frozenset[str] = frozenset({"int8"})
    qdq_blocks: bool = False
    half_scales: bool = False
    integer_cache: Callable[[GlmConfig], IntegerCache] | None = None
    grouped_experts: bool = False
    sums_in_16_bits: bool = True
    recent_logits: bool = False
    implicit_int8: bool = False
    tensorrt: bool = False
    tensorrt_needs: str | None = None

    @property
    def keeps_integers(self) -> bool:
        """Whether keys and values can be kept as int8."""
        return self.integer_cache is not None

    def require_consistent(self, opset: int) -> None:
        """See that a dialect of this opset can do what is claimed.

        Raises:
            InputError: it cannot.
        """
        later = self.qdq_blocks or self.half_scales or self.qdq_dtypes > {"int8"}
        if later and opset < LATER_QDQ_OPSET:
            raise InputError(
                f"Q/DQ beyond int8 per channel with float32 scales came with opset 21; found opset {opset}"
            )
        if self.tensorrt_needs is not None and not self.tensorrt:
            raise InputError("a call of TensorRT is needed by what TensorRT does not read")
