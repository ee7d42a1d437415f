"""ChatGLM's own integers (``quantization_bit``): one scale per row, int8, or int4 with two values a byte.

Source: ``quantization.py`` of the released ChatGLM-6B-int4 and ChatGLM2-6B-int4; int4 agrees with its compiled kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from glm_export.checkpoints.quantized.module import DequantizedTensor, KeptForm, QuantizedModule, Scheme
from glm_export.checkpoints.sources import row_pieces
from glm_export.spec.weight_map import Shape

LABEL = "quantization_bit"
METHODS = ("quantization_bit",)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowwiseIntegers(DequantizedTensor):
    """``stored`` int8 ``[N, K]``, or ``[N, K / 2]`` with the first of two values in the high bits; scales ``[N]``."""

    path: Path
    shape: Shape
    kind: str
    stored: Tensor
    scales: Tensor
    bits: int

    def rows(self, start: int, stop: int) -> Tensor:
        """Integers times their row's scale."""
        return self.integer_rows(start, stop).float().mul_(self.scales[start:stop, None].float())

    def integer_rows(self, start: int, stop: int) -> Tensor:
        """int8 ``[n, K]``."""
        packed = self.stored[start:stop]
        return packed if self.bits == 8 else torch.stack((packed >> 4, (packed << 4) >> 4), dim=-1).flatten(1)

    def held(self) -> KeptForm:
        """One scale a row."""
        return KeptForm(bits=self.bits)

    def integers(self) -> tuple[Tensor, Tensor]:
        """As stored, unpacked."""
        integers = torch.empty(self.shape, dtype=torch.int8)
        for start, stop in row_pieces(self.shape):
            integers[start:stop] = self.integer_rows(start, stop)
        return integers, self.scales[:, None].float()


def recognises(module: QuantizedModule) -> bool:
    """int8 beside a scale per row that has one axis."""
    scale = module.tensors.get("weight_scale")
    return module.dtype("weight") is torch.int8 and scale is not None and scale.shape == module.shape[:1]


def dequantized(module: QuantizedModule) -> RowwiseIntegers:
    """The weight.

    Raises:
        CheckpointError: shapes do not fit, or the config says another number of bits.
    """
    rows, columns = module.shape
    integers = module.tensor("weight", (rows, columns), (rows, columns // 2))
    bits = 8 if integers.shape[1] == columns else 4
    stated = module.config.number("quantization_bit")
    if stated not in (None, bits):
        raise module.refusal(f"lies there in {bits} bits, and config.json has quantization_bit {stated}; set it right")
    return RowwiseIntegers(
        path=module.path,
        shape=module.shape,
        kind=f"int{bits} ({LABEL})",
        stored=integers,
        scales=module.tensor("weight_scale", (rows,)),
        bits=bits,
    )


SCHEME = Scheme(label=LABEL, methods=METHODS, recognises=recognises, dequantized=dequantized)
