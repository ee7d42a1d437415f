"""Where each tensor lies in ``model.onnx.data``, fixed before anything is traced or read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from glm_export.spec.dtypes import STORED_BITS
from glm_export.spec.signature import TensorSpec
from glm_export.spec.weight_formats import GATE_UP, PROMPT, ExpertWeights, WeightFormat, WeightFormats

# Runtimes map large external tensors only from aligned offsets; 64 KiB serves every platform.
STACK_RANK = 3
LARGE_BYTES, LARGE_ALIGNMENT, SMALL_ALIGNMENT = 1 << 20, 1 << 16, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """Where one tensor lies in the file; ``shape`` is as stored.

    ``source`` is the parameter it comes from, which with a ``form`` becomes several tensors, one after another.
    ``columns``: of the parameter, its input channels. ``alternating``: its two halves of rows, of every part, stand in
    turn: gate and up of experts.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    transposed: bool
    offset: int
    length: int
    source: str
    form: WeightFormat | None = None
    columns: int = 0
    alternating: bool = False


def plan_weights(
    model: nn.Module, formats: Mapping[str, WeightFormats] | None = None, *, grouped_experts: bool = False
) -> list[StoredTensor]:
    """Lay out every parameter and rotary table of a reference model made on the meta device.

    Args:
        model: without aliased parameters; each tensor is stored in the dtype it has there.
        formats: the weights that are quantized.
        grouped_experts: stacks of experts' weights are for an operator of their own, not for ``MatMul``.

    Returns:
        Tensors in file order. Weights of products (of linear layers, and stacked ones of experts) are stored with
        their last two axes exchanged, ``[in, out]``, ready for ``MatMul``; with ``grouped_experts`` stacks are stored
        as they are, rows of gate and up in turn.
    """
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    stored: list[StoredTensor] = []
    end = 0
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        both = (formats or {}).get(name)
        stacked = tensor.dim() == STACK_RANK
        transposed = both is None and (name in linear or (stacked and not grouped_experts))
        alternating = stacked and grouped_experts and name.endswith(GATE_UP)
        dtype = str(tensor.dtype).removeprefix("torch.")
        shape = (*tensor.shape[:-2], tensor.shape[-1], tensor.shape[-2]) if transposed else tuple(tensor.shape)
        specs: list[tuple[TensorSpec, WeightFormat | None]] = [(TensorSpec(name=name, dtype=dtype, dims=shape), None)]
        if both is not None:
            specs = _specs_of_formats(both, name, shape, dtype)
        for spec, form in specs:
            length = torch.Size(spec.shape()).numel() * STORED_BITS[spec.dtype] // 8
            alignment = LARGE_ALIGNMENT if length >= LARGE_BYTES else SMALL_ALIGNMENT
            offset = -(-end // alignment) * alignment
            end = offset + length
            stored.append(
                StoredTensor(
                    name=spec.name, dtype=spec.dtype, shape=spec.shape(), transposed=transposed, offset=offset,
                    length=length, source=name, form=form, columns=tensor.shape[-1], alternating=alternating,
                )
            )  # fmt: skip
    return stored


def _specs_of_formats(
    both: WeightFormats, name: str, shape: tuple[int, ...], dtype: str
) -> list[tuple[TensorSpec, WeightFormat | None]]:
    """The tensors that stand for a weight in its formats."""
    if isinstance(both.decode, ExpertWeights):
        experts, rows, columns = shape
        return [(spec, both.decode) for spec in both.decode.stacked_tensors(name, experts, rows, columns, dtype)]
    specs: list[tuple[TensorSpec, WeightFormat | None]] = [
        (spec, both.decode) for spec in both.decode.stored_tensors(name, shape[0], shape[1], dtype)
    ]
    if both.prefill is not None:
        parts = both.prefill.stored_tensors(name + PROMPT, shape[0], shape[1], dtype)
        specs += [(spec, both.prefill) for spec in parts]
    return specs
