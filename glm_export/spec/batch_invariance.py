"""How far a row's logits depend on what stands beside it in a call.

Floating-point sums are not associative, so an operator that orders a row's sums by the size of its batch moves last
bits; one that rounds all rows by one scale is another model in company.
"""

from __future__ import annotations

from enum import Enum

from glm_export.spec.config import GlmConfig
from glm_export.spec.signature import LOGITS, Signature


class BatchInvariance(Enum):
    """Of a decode step, one token a row, whatever the other rows hold, however many they are, wherever a row stands.

    ``EXACT``: the same to the bit in ONNX Runtime on a CPU, in last bits elsewhere. ``CLOSE``: the same but for last
    bits, 1e-5 of the largest logit in float32; an activation that is rounded as it comes, and lies on the border
    between two steps, makes more of them, rarely. ``NONE``: rows round each other.
    """

    EXACT = "exact"
    CLOSE = "close"
    NONE = "none"

    @property
    def usable(self) -> bool:
        """Whether rows of different people may stand in one batch."""
        return self is not BatchInvariance.NONE


def weakest(*levels: BatchInvariance) -> BatchInvariance:
    """What holds where all of them act together."""
    return max(levels, key=list(BatchInvariance).index, default=BatchInvariance.EXACT)


def of_layout(config: GlmConfig, signature: Signature) -> BatchInvariance:
    """What a program's layout leaves, quantized or not.

    Where rows are padded together, padding is part of a row's sums. Products of routed experts are as high as the
    tokens that chose the expert. Products of halves round their sums by the number of rows (ONNX Runtime on a CPU).
    """
    (logits,) = (spec for spec in signature.outputs if spec.name == LOGITS)
    alone = signature.own_lengths and config.experts is None and logits.dtype == "float32"
    return BatchInvariance.EXACT if alone else BatchInvariance.CLOSE
