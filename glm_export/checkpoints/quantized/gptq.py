"""GPTQ as AutoGPTQ and GPTQModel save it: input channels packed down the columns, in groups, perhaps out of order.

Two conventions are about. Format ``gptq`` stores zero points less one, ``gptq_v2`` as they are. Source:
``convert_gptq_v1_to_v2_format_module`` and ``dequantize_weight`` of GPTQModel 7.7.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from glm_export.checkpoints.quantized.module import (
    ACT_ORDER,
    KEPT_BITS,
    WORD_BITS,
    ZERO_POINTS,
    DequantizedTensor,
    KeptForm,
    QuantizedModule,
    Scheme,
    group_of_columns,
    in_order,
    packed_bits,
    unpacked,
)
from glm_export.checkpoints.sources import row_pieces
from glm_export.errors import CheckpointError
from glm_export.spec.weight_map import Shape

LABEL = "GPTQ"
METHODS = ("gptq", "auto-round", "intel/auto-round")
# What is added to a stored zero point.
CONVENTIONS = {"gptq": 1, "gptq_v2": 0, "auto_round:auto_gptq": 1, "auto_round:gptq": 1}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedColumns(DequantizedTensor):
    """``words`` int32 ``[K * bits / 32, N]``, ``zero_words`` ``[G, N * bits / 32]``, scales ``[G, N]``.

    ``group_K`` says each channel's group; ``zero_offset`` is added to stored zero points.
    """

    path: Path
    shape: Shape
    kind: str
    words: Tensor
    zero_words: Tensor
    scales: Tensor
    group_of: Tensor
    bits: int
    zero_offset: int

    def rows(self, start: int, stop: int) -> Tensor:
        """``(scale * (integer - zero point))`` transposed."""
        values_Kn = self.unsigned_columns(start, stop).float()
        values_Kn.sub_(self.zero_points(start, stop).float()[self.group_of])
        return values_Kn.mul_(self.scales[:, start:stop].float()[self.group_of]).t()

    def unsigned_columns(self, start: int, stop: int) -> Tensor:
        """int32 ``[K, n]``."""
        return unpacked(self.words[:, start:stop], self.bits).transpose(1, 2).flatten(0, 1)

    def zero_points(self, start: int, stop: int) -> Tensor:
        """int32 ``[G, n]``."""
        a_word = WORD_BITS // self.bits
        first = start // a_word
        words = self.zero_words[:, first : -(-stop // a_word)]
        # Added to whole words, as GPTQModel does: a carry undoes the borrow of a zero point of 0.
        ones = sum(1 << shift for shift in range(0, WORD_BITS, self.bits))
        zeros = unpacked(words + self.zero_offset * ones, self.bits).flatten(1)
        return zeros[:, start - first * a_word : stop - first * a_word]

    def held(self) -> KeptForm | str:
        """Groups in order, zero points in the middle, and 4 or 8 bits."""
        groups = len(self.scales)
        size = in_order(self.group_of, groups)
        if self.bits not in KEPT_BITS:
            return f"has {self.bits} bits"
        if size is None:
            return ACT_ORDER
        if (self.zero_points(0, self.shape[0]) != 1 << self.bits - 1).any():
            return ZERO_POINTS
        return KeptForm(bits=self.bits, group=size if groups > 1 else None)

    def integers(self) -> tuple[Tensor, Tensor]:
        """Counted from the middle."""
        integers = torch.empty(self.shape, dtype=torch.int8)
        for start, stop in row_pieces(self.shape):
            unsigned_Kn = self.unsigned_columns(start, stop)
            integers[start:stop] = (unsigned_Kn - (1 << self.bits - 1)).t()
        return integers, self.scales.float().t()


def recognises(module: QuantizedModule) -> bool:
    """Packed words as wide as the scales: channels lie below each other."""
    words, scales = module.tensors.get("qweight"), module.tensors.get("scales")
    return words is not None and scales is not None and words.shape[-1:] == scales.shape[-1:]


def dequantized(module: QuantizedModule) -> PackedColumns:
    """The weight.

    Raises:
        CheckpointError: shapes do not fit, or nothing says the zero points' convention.
    """
    rows, columns = module.shape
    words = module.tensor("qweight")
    bits = packed_bits(module, "qweight", words.shape[0], columns)
    scales_GN = module.tensor("scales")
    groups = scales_GN.shape[0]
    return PackedColumns(
        path=module.path,
        shape=module.shape,
        kind=f"int{bits} ({LABEL})",
        words=module.tensor("qweight", (columns * bits // WORD_BITS, rows)),
        zero_words=module.tensor("qzeros", (groups, -(-rows * bits // WORD_BITS))),
        scales=module.tensor("scales", (groups, rows)),
        group_of=group_of_columns(module, groups, module.config.number("group_size"), "g_idx"),
        bits=bits,
        zero_offset=_zero_offset(module),
    )


def _zero_offset(module: QuantizedModule) -> int:
    config = module.config
    if config.method not in METHODS:
        raise CheckpointError(
            f"{module.name} is packed as GPTQ, and nothing says what its zero points mean (checkpoint_format gptq or "
            "gptq_v2): expected quantization_config of method gptq in config.json, or quantize_config.json; found "
            f"{f'method {config.method!r} in {config.told_by}' if config.told_by else 'neither'}: take it from where "
            "the weights came from"
        )
    convention = config.text("checkpoint_format", "format", "packing_format") or "gptq"
    if convention not in CONVENTIONS:
        raise module.refusal(
            f"is in GPTQ's format {convention!r} ({config.told_by}); read are {', '.join(CONVENTIONS)}: save it as gptq"
        )
    return CONVENTIONS[convention]


SCHEME = Scheme(label=LABEL, methods=METHODS, recognises=recognises, dequantized=dequantized)
