"""Float8 in two-dimensional blocks with a scale each (``weight_scale_inv``), as DeepSeek's releases and GLM-4.5-FP8 do.

Source: ``finegrained_fp8`` of transformers. Despite its name the scale is multiplied with.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from glm_export.checkpoints.quantized.module import DequantizedTensor, QuantizedModule, Scheme
from glm_export.errors import shown
from glm_export.spec.weight_map import Shape

LABEL = "block scales"
METHODS = ("fp8",)
SCALE = "weight_scale_inv"
FLOAT8 = {torch.float8_e4m3fn: "float8_e4m3fn", torch.float8_e5m2: "float8_e5m2"}
DEFAULT_BLOCK = [128, 128]
"""What transformers assumes where the config names no ``weight_block_size``."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScaledBlocks(DequantizedTensor):
    """``values`` ``[N, K]``, scales ``[ceil(N / block[0]), ceil(K / block[1])]``; blocks at the edges may be short."""

    path: Path
    shape: Shape
    kind: str
    values: Tensor
    scales: Tensor
    block: tuple[int, int]

    def rows(self, start: int, stop: int) -> Tensor:
        """Values times their block's scale."""
        rows, columns = torch.arange(start, stop) // self.block[0], torch.arange(self.shape[1]) // self.block[1]
        return self.values[start:stop].float().mul_(self.scales.float()[rows][:, columns])


def recognises(module: QuantizedModule) -> bool:
    """Float8 beside ``weight_scale_inv``."""
    return module.dtype("weight") in FLOAT8 and SCALE in module.tensors


def dequantized(module: QuantizedModule) -> ScaledBlocks:
    """The weight.

    Raises:
        CheckpointError: nothing says how large a block is, or the shapes contradict it.
    """
    values = module.tensor("weight", module.shape)
    scales = module.tensor(SCALE)
    if scales.numel() == 1:
        return _scaled(module, values, scales.reshape(1, 1), module.shape)
    if not module.config.told_by:
        raise module.refusal(
            "has a scale for each block, and how large a block is (weight_block_size) stands in quantization_config of "
            "config.json, which is missing: take it from where the weights came from"
        )
    block = module.config.values.get("weight_block_size", DEFAULT_BLOCK)
    if not isinstance(block, list | tuple) or len(block) != 2 or not all(isinstance(n, int) and n > 0 for n in block):
        raise module.refusal(f"needs a weight_block_size of two sizes ({module.config.told_by}), found {shown(block)}")
    return _scaled(module, values, scales, tuple(block))


def _scaled(module: QuantizedModule, values: Tensor, scales: Tensor, block: Shape) -> ScaledBlocks:
    wanted = tuple(-(-size // step) for size, step in zip(module.shape, block, strict=True))
    if tuple(scales.shape) != wanted:
        raise module.refusal(f"needs scales {list(wanted)} for blocks of {list(block)}, found {list(scales.shape)}")
    return ScaledBlocks(
        path=module.path,
        shape=module.shape,
        kind=f"{FLOAT8[values.dtype]} ({LABEL})",
        values=values,
        scales=scales,
        block=(block[0], block[1]),
    )


SCHEME = Scheme(label=LABEL, methods=METHODS, recognises=recognises, dequantized=dequantized)
