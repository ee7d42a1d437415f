"""bitsandbytes: NF4 and FP4 in blocks, their scales perhaps quantized again; LLM.int8 with a scale per row.

Source: bitsandbytes 0.50, ``QuantState.from_dict``, ``dequantize_4bit``, ``int8_vectorwise_dequant``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glm_export.checkpoints.quantized.module import DequantizedTensor, KeptForm, QuantizedModule, Scheme
from glm_export.errors import shown
from glm_export.model_folder import parse_json
from glm_export.spec.weight_map import Shape

LABEL = "bitsandbytes"
METHODS = ("bitsandbytes",)
STATES = ("weight.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__fp4")
INT8_STEP = 0.007874015718698502
"""1 / 127 as bitsandbytes has it, float32."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CodedBlocks(DequantizedTensor):
    """Row after row in one piece, two codes a byte, the first one high; ``block_size`` neighbours share a scale.

    ``packed``: uint8 ``[N * K / 2]``. ``codes``: float32 ``[16]``, what each code stands for. ``scales``: one a block,
    float32; or uint8 into ``nested_codes``, times ``nested_scales`` of ``nested_size`` neighbours, plus an offset.
    """

    path: Path
    shape: Shape
    kind: str
    packed: Tensor
    codes: Tensor
    scales: Tensor
    block_size: int
    nested_codes: Tensor | None = None
    nested_scales: Tensor | None = None
    nested_size: int = 0
    nested_offset: float = 0.0

    def rows(self, start: int, stop: int) -> Tensor:
        """A code's value times its block's scale."""
        first, last = start * self.shape[1], stop * self.shape[1]
        stored = self.packed[first // 2 : -(-last // 2)]
        codes = torch.stack((stored >> 4, stored & 15), dim=-1).flatten()[first % 2 :][: last - first]
        values = self.codes.float()[codes.int()]
        blocks = torch.arange(first // self.block_size, -(-last // self.block_size))
        skipped = first - int(blocks[0]) * self.block_size
        scales = self.block_scales(blocks).repeat_interleave(self.block_size)[skipped : skipped + last - first]
        return values.mul_(scales).view(stop - start, self.shape[1])

    def block_scales(self, blocks: Tensor) -> Tensor:
        """float32, of the blocks with these numbers."""
        scales = self.scales[blocks]
        if self.nested_codes is None or self.nested_scales is None:
            return scales.float()
        outer = self.nested_scales.float()[blocks // self.nested_size]
        return self.nested_codes.float()[scales.int()].mul_(outer).add_(self.nested_offset)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowMaxima(DequantizedTensor):
    """``stored`` int8 ``[N, K]``; each row's largest magnitude, which 127 stands for, float32 ``[N]``."""

    path: Path
    shape: Shape
    kind: str
    stored: Tensor
    maxima: Tensor

    def rows(self, start: int, stop: int) -> Tensor:
        """``integer * maximum / 127``."""
        return self.stored[start:stop] * self.maxima[start:stop, None].float() * INT8_STEP

    def held(self) -> KeptForm:
        """One scale a row."""
        return KeptForm(bits=8)

    def integers(self) -> tuple[Tensor, Tensor]:
        """As stored; scales are 127ths of the maxima."""
        return self.stored, self.maxima[:, None].float() * INT8_STEP


def recognises(module: QuantizedModule) -> bool:
    """A state of 4 bits or bytes in one column, or the maxima of LLM.int8."""
    weight = module.tensors.get("weight")
    coded = weight is not None and weight.dtype is torch.uint8 and weight.shape[-1] == 1
    return coded or _state(module) is not None or "SCB" in module.tensors


def dequantized(module: QuantizedModule) -> CodedBlocks | RowMaxima:
    """The weight.

    Raises:
        CheckpointError: a tensor is missing, or its state is not that of this weight.
    """
    return _int8(module) if "SCB" in module.tensors else _coded(module)


def _int8(module: QuantizedModule) -> RowMaxima:
    if "weight_format" in module.tensors and int(module.tensor("weight_format")) != 0:
        raise module.refusal("lies in a GPU's tile order (weight_format); save it with bitsandbytes 0.45 or later")
    integers = module.tensor("weight", module.shape)
    if integers.dtype is not torch.int8:
        raise module.refusal(f"should be int8 beside its SCB, found {integers.dtype}")
    maxima_N = module.tensor("SCB", module.shape[:1])
    return RowMaxima(path=module.path, shape=module.shape, kind=f"int8 ({LABEL})", stored=integers, maxima=maxima_N)


def _coded(module: QuantizedModule) -> CodedBlocks:
    suffix = _state(module)
    if suffix is None:
        raise module.refusal(f"lacks {STATES[0]}, which says its shape and blocks; save the model again")
    state = _read_state(module, suffix)
    shape, block_size = tuple(state.get("shape", ())), state.get("blocksize")
    if shape != module.shape or not isinstance(block_size, int) or block_size < 1:
        raise module.refusal(f"has a state of shape {list(shape)}, blocks of {shown(block_size)}")
    count = math.prod(shape)
    # FSDP stores the same bytes as another dtype.
    packed = module.tensor("weight").reshape(-1).view(torch.uint8)
    if len(packed) != -(-count // 2):
        raise module.refusal(f"needs {-(-count // 2)} bytes, found {len(packed)}")
    blocks = -(-count // block_size)
    kind = f"{state.get('quant_type', '4 bits')} ({LABEL})"
    scales, codes = module.tensor("weight.absmax", (blocks,)), module.tensor("weight.quant_map", (16,))
    if "weight.nested_absmax" not in module.tensors:
        return CodedBlocks(
            path=module.path, shape=shape, kind=kind, packed=packed, codes=codes, scales=scales, block_size=block_size
        )
    nested_size = state.get("nested_blocksize")
    if not isinstance(nested_size, int) or nested_size < 1:
        raise module.refusal(f"has nested scales in blocks of {shown(nested_size)}")
    return CodedBlocks(
        path=module.path,
        shape=shape,
        kind=kind,
        packed=packed,
        codes=codes,
        scales=scales,
        block_size=block_size,
        nested_codes=module.tensor("weight.nested_quant_map", (256,)),
        nested_scales=module.tensor("weight.nested_absmax", (-(-blocks // nested_size),)),
        nested_size=nested_size,
        nested_offset=float(state.get("nested_offset", 0.0)),
    )


def _state(module: QuantizedModule) -> str | None:
    return next((suffix for suffix in STATES if suffix in module.tensors), None)


def _read_state(module: QuantizedModule, suffix: str) -> dict[str, Any]:
    try:
        state = parse_json(bytes(module.tensor(suffix).tolist()))
    except (TypeError, ValueError) as error:
        raise module.refusal(f"has a {suffix} that is no JSON ({error}); save the model again") from error
    if not isinstance(state, dict):
        raise module.refusal(f"has a {suffix} that is no JSON object; save the model again")
    return state


SCHEME = Scheme(label=LABEL, methods=METHODS, recognises=recognises, dequantized=dequantized)
