"""AWQ as AutoAWQ saves it (``gemm``): output channels packed along the rows, eight a word, interleaved.

Source: ``WQLinear_GEMM`` and ``awq/utils/packing_utils.py`` of AutoAWQ 0.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from glm_export.checkpoints.quantized.module import (
    ZERO_POINTS,
    DequantizedTensor,
    KeptForm,
    QuantizedModule,
    Scheme,
    group_of_columns,
    in_order,
    unpacked,
)
from glm_export.checkpoints.sources import row_pieces
from glm_export.spec.weight_map import Shape

LABEL = "AWQ"
METHODS = ("awq",)
BITS, A_WORD = 4, 8
PLACE_OF = [0, 4, 1, 5, 2, 6, 3, 7]
"""Which four bits of a word, from the low end, hold each of its eight columns."""
VERSIONS = ("", "gemm", "exllama")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InterleavedRows(DequantizedTensor):
    """``words`` int32 ``[K, N / 8]``, ``zero_words`` ``[G, N / 8]``, scales ``[G, N]``; ``group_K``: each channel's."""

    path: Path
    shape: Shape
    kind: str
    words: Tensor
    zero_words: Tensor
    scales: Tensor
    group_of: Tensor

    def rows(self, start: int, stop: int) -> Tensor:
        """``((integer - zero point) * scale)`` transposed."""
        values_Kn = _columns(self.words, start, stop).float()
        values_Kn.sub_(_columns(self.zero_words, start, stop).float()[self.group_of])
        return values_Kn.mul_(self.scales[:, start:stop].float()[self.group_of]).t()

    def held(self) -> KeptForm | str:
        """Only where every zero point is the middle."""
        groups = len(self.scales)
        if (_columns(self.zero_words, 0, self.shape[0]) != 1 << BITS - 1).any():
            return ZERO_POINTS
        return KeptForm(bits=BITS, group=in_order(self.group_of, groups) if groups > 1 else None)

    def integers(self) -> tuple[Tensor, Tensor]:
        """Counted from the middle."""
        integers = torch.empty(self.shape, dtype=torch.int8)
        for start, stop in row_pieces(self.shape):
            integers[start:stop] = (_columns(self.words, start, stop) - (1 << BITS - 1)).t()
        return integers, self.scales.float().t()


def _columns(words: Tensor, start: int, stop: int) -> Tensor:
    """int32 ``[A, n]``."""
    first = start // A_WORD
    values = unpacked(words[:, first : -(-stop // A_WORD)], BITS)[..., PLACE_OF].flatten(1)
    return values[:, start - first * A_WORD : stop - first * A_WORD]


def recognises(module: QuantizedModule) -> bool:
    """Packed words an eighth as wide as the scales."""
    words, scales = module.tensors.get("qweight"), module.tensors.get("scales")
    return words is not None and scales is not None and words.shape[-1] * A_WORD == scales.shape[-1]


def dequantized(module: QuantizedModule) -> InterleavedRows:
    """The weight.

    Raises:
        CheckpointError: shapes do not fit, or it is packed in another way than ``gemm``.
    """
    config = module.config
    version = config.text("version") if config.method in METHODS else ""
    if version not in VERSIONS:
        raise module.refusal(f"is packed as AWQ's {version!r} ({config.told_by}); gemm is read: save it as that")
    rows, columns = module.shape
    groups = module.tensor("scales").shape[0]
    return InterleavedRows(
        path=module.path,
        shape=module.shape,
        kind=f"int{BITS} ({LABEL})",
        words=module.tensor("qweight", (columns, rows // A_WORD)),
        zero_words=module.tensor("qzeros", (groups, rows // A_WORD)),
        scales=module.tensor("scales", (groups, rows)),
        group_of=group_of_columns(module, groups, config.number("group_size", "q_group_size"), ""),
    )


SCHEME = Scheme(label=LABEL, methods=METHODS, recognises=recognises, dequantized=dequantized)
