"""What the files hold of one quantized layer, what a config says of it, and what all schemes share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glm_export.checkpoints.sources import ComputedTensor, StoredTensor
from glm_export.errors import CheckpointError
from glm_export.spec.weight_map import Shape

WORD_BITS = 32
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
WHOLE = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
KINDS: dict[str, tuple[torch.dtype, ...]] = {
    **dict.fromkeys(("qweight", "qzeros", "weight_packed"), (torch.int32,)),
    **dict.fromkeys(("g_idx", "weight_g_idx", "weight_shape", "weight_zero_point", "weight_format"), WHOLE),
    **dict.fromkeys(("scales", "SCB", "weight.absmax", "weight.quant_map"), (*FLOATS, torch.uint8)),
    **dict.fromkeys(("weight.nested_absmax", "weight.nested_quant_map"), FLOATS),
}
"""What lies behind a layer's name, where it is always of a kind."""
LISTS = ("qweight", "qzeros", "scales", "g_idx", "weight", "weight_packed", "weight_shape")
"""Parts that are never a single number; a scale of a whole weight may be (float8, ``weight_scale`` and its inverse)."""
KEPT_BITS = (4, 8)
"""Of integers that weight formats have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationConfig:
    """What a folder says about its quantization beside the tensors.

    ``told_by``: where that stands; empty where nothing is said. ``method``: ``quant_method``, lower case.
    """

    told_by: str = ""
    method: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)

    def number(self, *keys: str) -> int | None:
        """The first of several keys that holds a whole number."""
        found = (self.values.get(key) for key in keys)
        return next((value for value in found if isinstance(value, int) and not isinstance(value, bool)), None)

    def text(self, *keys: str) -> str:
        """The first of several keys that holds a text, lower case; else nothing."""
        found = (self.values.get(key) for key in keys)
        return next((value.lower() for value in found if isinstance(value, str)), "")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedModule:
    """One layer's tensors by what follows its name.

    ``shape`` is that of its weight ``[N, K]``, as the family expects it.
    """

    name: str
    shape: Shape
    tensors: Mapping[str, StoredTensor]
    config: QuantizationConfig

    def dtype(self, suffix: str) -> torch.dtype | None:
        """Of one tensor; None where it is not there."""
        found = self.tensors.get(suffix)
        return found.dtype if found is not None else None

    def tensor(self, suffix: str, *shapes: Shape) -> Tensor:
        """One tensor, which has one of these shapes where any are given.

        Raises:
            CheckpointError: it is missing, or has another shape.
        """
        found = self.tensors.get(suffix)
        if found is None:
            raise self.refusal(f"lacks {self.name}.{suffix}")
        if shapes and found.shape not in shapes:
            wanted = " or ".join(str(list(shape)) for shape in shapes)
            raise self.refusal(f"should have {suffix} {wanted}, found {list(found.shape)}")
        wanted_kind = KINDS.get(suffix)
        if wanted_kind is not None and found.dtype not in wanted_kind:
            kinds = " or ".join(str(kind).removeprefix("torch.") for kind in wanted_kind)
            raise self.refusal(f"should have {suffix} {kinds}, found {found.kind}; save the model again")
        return found.tensor

    def require_axes(self) -> None:
        """See that what holds values and their scales is no single number, and not nothing, as schemes expect.

        Raises:
            CheckpointError: it is one.
        """
        for suffix, stored in self.tensors.items():
            if suffix in LISTS and not stored.shape:
                raise self.refusal(f"has a single number as {suffix}; save the model again")
            # An index may be left empty where channels lie in order.
            if 0 in stored.shape and not suffix.endswith("g_idx"):
                raise self.refusal(f"has nothing as {suffix}; save the model again")

    @property
    def path(self) -> Path:
        """The file its largest tensor lies in."""
        return max(self.tensors.values(), key=lambda stored: stored.tensor.nbytes).path

    def refusal(self, why: str) -> CheckpointError:
        """An error about this layer."""
        return CheckpointError(f"{self.name}, a quantized weight {list(self.shape)}, {why}")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptForm:
    """Integers counted from zero: how many bits they have, and how many neighbours share a scale (None: a row)."""

    bits: int
    group: int | None = None

    def __str__(self) -> str:
        return f"int{self.bits} with a scale for {'each row' if self.group is None else f'{self.group} neighbours'}"


class DequantizedTensor(ComputedTensor):
    """A weight ``[N, K]`` whose values are worked out from integers or small floats."""

    __slots__ = ()

    def held(self) -> KeptForm | str:
        """The form of its integers, where a value is one times a scale; else what stands against that."""
        return f"is {self.kind}, no integers times a scale"

    def integers(self) -> tuple[Tensor, Tensor]:
        """Integers int8 ``[N, K]`` counted from zero, and scales float32 ``[N, G]``; only where they are held."""
        raise NotImplementedError(f"{self.kind} has no integers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """One way of storing quantized weights: each file of this room has one ``SCHEME``.

    ``label``: what people call it. ``methods``: what configs call it. ``recognises``: whether a layer's tensors are of
    it. ``dequantized``: the layer's weight; raises :class:`CheckpointError` where something does not fit.
    """

    label: str
    methods: tuple[str, ...]
    recognises: Callable[[QuantizedModule], bool]
    dequantized: Callable[[QuantizedModule], DequantizedTensor]


def packed_bits(module: QuantizedModule, suffix: str, words: int, values: int) -> int:
    """How many bits a value has, where ``values`` of them fill ``words`` of 32 bits.

    Raises:
        CheckpointError: not 2, 4 or 8, the sizes that divide a word.
    """
    fitting = [bits for bits in (2, 4, 8) if -(-values * bits // WORD_BITS) == words]
    stated = module.config.number("bits", "w_bit")
    if stated in fitting:
        return stated
    if not fitting:
        found = f"{WORD_BITS * words / values:.3g}"
        raise module.refusal(f"has {found} bits a value ({suffix}); 2, 4 and 8 are read")
    return fitting[0]


def unpacked(words: Tensor, bits: int) -> Tensor:
    """Values of each word, low bits first: int32 ``[A, B] -> [A, B, 32 / bits]``, int32."""
    shifts = torch.arange(0, WORD_BITS, bits, dtype=torch.int32)
    return (words.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)


def group_of_columns(module: QuantizedModule, groups: int, group_size: int | None, index: str) -> Tensor:
    """Which group each input channel belongs to, int64 ``[K]``: as stored, else neighbours in order.

    Args:
        module: the layer; its tensor ``index``, where it is there, says the group of each channel (act-order).
        groups: how many there are.
        group_size: as the config has it; None or -1 leave it to the shapes.
        index: the name of that tensor.

    Raises:
        CheckpointError: sizes contradict each other.
    """
    columns = module.shape[1]
    if index in module.tensors:
        stored = module.tensor(index, (columns,)).long()
        low, high = torch.aminmax(stored)
        # compressed-tensors initialises it with -1 where channels lie in order.
        if int(high) >= 0:
            if int(low) < 0 or int(high) >= groups:
                raise module.refusal(f"has groups {int(low)} to {int(high)} in {index}, and {groups} scales")
            return stored
    size = group_size if group_size is not None and group_size > 0 else -(-columns // groups)
    if -(-columns // size) != groups:
        if columns % groups:
            raise module.refusal(f"has {groups} groups of {columns} channels, which are none of {size}")
        size = columns // groups
    return torch.arange(columns) // size


def in_order(group_of: Tensor, groups: int) -> int | None:
    """Neighbours that share a scale, where channels lie in the order of their groups; else None."""
    size = -(-len(group_of) // groups)
    return size if torch.equal(group_of, torch.arange(len(group_of)) // size) else None


ACT_ORDER = "has its input channels in another order than their groups (act-order)"
ZERO_POINTS = "has zero points of its own (asymmetric)"
