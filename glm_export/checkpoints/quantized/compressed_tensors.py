"""compressed-tensors (llm-compressor): float8 or int8 as they are, and integers packed into words.

``weight`` with ``weight_scale`` (``float-quantized``, ``int-quantized``, ``naive-quantized``; fbgemm's and ModelOpt's
float8 look the same), or ``weight_packed`` (``pack-quantized``). Source: compressed-tensors 0.20.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glm_export.checkpoints.quantized.block_fp8 import FLOAT8, ScaledBlocks
from glm_export.checkpoints.quantized.module import (
    ACT_ORDER,
    KEPT_BITS,
    WORD_BITS,
    ZERO_POINTS,
    DequantizedTensor,
    KeptForm,
    QuantizationConfig,
    QuantizedModule,
    Scheme,
    group_of_columns,
    in_order,
    packed_bits,
    unpacked,
)
from glm_export.checkpoints.sources import row_pieces
from glm_export.spec.weight_map import Shape

LABEL = "compressed-tensors"
METHODS = ("compressed-tensors", "fbgemm_fp8", "modelopt")
PACKED, SCALE, ZERO_POINT, INDEX = "weight_packed", "weight_scale", "weight_zero_point", "weight_g_idx"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroupedValues(DequantizedTensor):
    """``values`` ``[N, K]`` int8 or float8, or int32 words of ``bits`` each; scales and zero points ``[N or 1, G]``.

    Packed values are counted from ``-2 ** (bits - 1)``, and so are packed zero points, int32
    ``[ceil(N * bits / 32), G]``. ``group_K`` says each channel's group.
    """

    path: Path
    shape: Shape
    kind: str
    values: Tensor
    bits: int
    scales: Tensor
    zeros: Tensor | None
    group_of: Tensor

    def rows(self, start: int, stop: int) -> Tensor:
        """``(value - zero point) * scale``."""
        values_nK = self.stored_rows(start, stop).float()
        if self.zeros is not None:
            values_nK = values_nK - self._spread(self.zero_points(start, stop).float())
        return values_nK * self._spread(self._of_rows(self.scales, start, stop).float())

    def stored_rows(self, start: int, stop: int) -> Tensor:
        """``[n, K]`` as they were before they were packed."""
        if self.values.dtype is not torch.int32:
            return self.values[start:stop]
        unsigned_nK = unpacked(self.values[start:stop], self.bits).flatten(1)[:, : self.shape[1]]
        return unsigned_nK - (1 << self.bits - 1)

    def held(self) -> KeptForm | str:
        """Integers of 4 or 8 bits in order, zero points of 0."""
        rows, groups = self.shape[0], self.scales.shape[1]
        size = in_order(self.group_of, groups)
        if self.values.dtype in FLOAT8 or self.bits not in KEPT_BITS:
            return f"is {self.kind}"
        if size is None:
            return ACT_ORDER
        if self.zeros is not None and self.zero_points(0, rows).any():
            return ZERO_POINTS
        return KeptForm(bits=self.bits, group=size if groups > 1 else None)

    def integers(self) -> tuple[Tensor, Tensor]:
        """As they were before they were packed."""
        integers = torch.empty(self.shape, dtype=torch.int8)
        for start, stop in row_pieces(self.shape):
            integers[start:stop] = self.stored_rows(start, stop)
        return integers, self.scales.float().expand(self.shape[0], -1)

    def zero_points(self, start: int, stop: int) -> Tensor:
        """``[n, G]``; only where there are any."""
        assert self.zeros is not None
        if self.zeros.dtype is not torch.int32:
            return self._of_rows(self.zeros, start, stop)
        a_word = WORD_BITS // self.bits
        first = start // a_word
        words_GN = self.zeros[first : -(-stop // a_word)].t()
        unsigned_GN = unpacked(words_GN, self.bits).flatten(1)[:, start - first * a_word : stop - first * a_word]
        return unsigned_GN.t() - (1 << self.bits - 1)

    def _of_rows(self, table: Tensor, start: int, stop: int) -> Tensor:
        return table if len(table) == 1 < self.shape[0] else table[start:stop]

    def _spread(self, table_NG: Tensor) -> Tensor:
        """To every channel, unless one value serves all."""
        return table_NG if table_NG.shape[1] == 1 else table_NG[:, self.group_of]


def recognises(module: QuantizedModule) -> bool:
    """Packed words, or integers or float8 beside ``weight_scale``."""
    plain = module.dtype("weight")
    return SCALE in module.tensors and (PACKED in module.tensors or plain is torch.int8 or plain in FLOAT8)


def dequantized(module: QuantizedModule) -> GroupedValues | ScaledBlocks:
    """The weight.

    Raises:
        CheckpointError: shapes do not fit, or the layer was transformed before it was quantized.
    """
    if module.config.values.get("transform_config"):
        raise module.refusal(f"was transformed before it was quantized (transform_config, {module.config.told_by})")
    rows, columns = module.shape
    if PACKED in module.tensors:
        values = module.tensor(PACKED)
        if values.dtype is not torch.int32:
            raise module.refusal(f"has {PACKED} of {values.dtype}, where integers are packed into int32 words")
        bits = _packed_bits(module, values)
        module.tensor(PACKED, (rows, -(-columns * bits // WORD_BITS)))
        _require_stated_shape(module)
        name = f"int{bits}"
    else:
        values, bits = module.tensor("weight", module.shape), 8
        name = FLOAT8.get(values.dtype, "int8")
    scales = module.tensor(SCALE)
    kind = f"{name} ({LABEL})"
    block = next((block for block in _blocks(module.config) if _fits(module.shape, block, scales)), None)
    if block is not None and values.dtype in FLOAT8:
        return ScaledBlocks(path=module.path, shape=module.shape, kind=kind, values=values, scales=scales, block=block)
    scales_NG = _table(module, SCALE, scales)
    groups = scales_NG.shape[1]
    return GroupedValues(
        path=module.path,
        shape=module.shape,
        kind=kind,
        values=values,
        bits=bits,
        scales=scales_NG,
        zeros=_zero_points(module, groups, bits),
        group_of=group_of_columns(module, groups, _group_size(module, groups), INDEX),
    )


def _table(module: QuantizedModule, suffix: str, table: Tensor) -> Tensor:
    """One value, one a row or one a group as ``[N or 1, G]``."""
    rows = module.shape[0]
    if table.numel() == 1:
        return table.reshape(1, 1)
    if table.shape == (rows,):
        return table.unsqueeze(1)
    if table.dim() != 2 or table.shape[0] != rows:
        raise module.refusal(
            f"should have {suffix} of one value, [{rows}, 1], [{rows}, groups], or of blocks that "
            f"config.json names (block_structure); found {list(table.shape)}"
        )
    return table


def _zero_points(module: QuantizedModule, groups: int, bits: int) -> Tensor | None:
    if ZERO_POINT not in module.tensors:
        return None
    stored = module.tensor(ZERO_POINT)
    if stored.dtype is torch.int32:
        return module.tensor(ZERO_POINT, (-(-module.shape[0] * bits // WORD_BITS), groups))
    return _table(module, ZERO_POINT, stored)


def _packed_bits(module: QuantizedModule, values: Tensor) -> int:
    # Files of 3, 5, 6 and 7 bits are packed differently by different versions.
    return packed_bits(module, PACKED, values.shape[1], module.shape[1])


def _require_stated_shape(module: QuantizedModule) -> None:
    if "weight_shape" in module.tensors:
        stated = tuple(module.tensor("weight_shape").tolist())
        if stated != module.shape:
            raise module.refusal(f"has weight_shape {list(stated)}")


def weight_settings(config: QuantizationConfig) -> Iterator[Mapping[str, Any]]:
    """What each group of layers says about its weights."""
    for group in _groups(config):
        weights = group.get("weights")
        if isinstance(weights, Mapping):
            yield weights


def rounded_activations(config: QuantizationConfig) -> bool:
    """Whether the source rounds inputs of its layers as well."""
    return any(group.get("input_activations") for group in _groups(config))


def _groups(config: QuantizationConfig) -> list[Mapping[str, Any]]:
    groups = config.values.get("config_groups")
    found = groups.values() if isinstance(groups, Mapping) else []
    return [group for group in found if isinstance(group, Mapping)]


def _blocks(config: QuantizationConfig) -> Iterator[tuple[int, int]]:
    for weights in weight_settings(config):
        block = weights.get("block_structure")
        if isinstance(block, list) and len(block) == 2 and all(isinstance(size, int) and size > 0 for size in block):
            yield block[0], block[1]


def _fits(shape: Shape, block: tuple[int, int], scales: Tensor) -> bool:
    return tuple(scales.shape) == (-(-shape[0] // block[0]), -(-shape[1] // block[1]))


def _group_size(module: QuantizedModule, groups: int) -> int | None:
    stated = (weights.get("group_size") for weights in weight_settings(module.config))
    columns = module.shape[1]
    return next((size for size in stated if isinstance(size, int) and size > 0 and -(-columns // size) == groups), None)


SCHEME = Scheme(label=LABEL, methods=METHODS, recognises=recognises, dequantized=dequantized)
