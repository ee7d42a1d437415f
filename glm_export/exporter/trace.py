"""The reference decoder as ONNX's exporter sees it, traced without weights, and the weights attached afterwards."""

from __future__ import annotations

import logging
import warnings
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from glm_export.artifacts.program import WEIGHTS
from glm_export.errors import InputError
from glm_export.exporter.weight_layout import StoredTensor
from glm_export.modeling import Decoder, building_in
from glm_export.spec.config import GlmConfig
from glm_export.spec.dtypes import ONNX_DTYPES
from glm_export.spec.signature import BATCH, PAST, SEQUENCE, TOTAL, Signature


def untied(config: GlmConfig) -> GlmConfig:
    """The same model with a head of its own: in the program, embedding rows and head columns are stored apart."""
    return replace(config, tied_head=False)


class _Flat(nn.Module):
    """The decoder with the program's inputs and outputs in graph order."""

    def __init__(self, decoder: Decoder, *, last_logits_only: bool) -> None:
        super().__init__()
        self.decoder = decoder
        self.last_logits_only = last_logits_only

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: list[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        output = self.decoder(input_ids, attention_mask, position_ids, past, last_logits_only=self.last_logits_only)
        return output.logits, output.past_key_values


def trace(config: GlmConfig, signature: Signature, *, dtype: str, logits: str, opset: int) -> ir.Model:
    """Trace the reference decoder without weights.

    Args:
        config: the sizes; the head is traced untied.
        signature: its symbolic dims become dynamic.
        dtype: of weights, cache and logits.
        logits: ``all`` or ``last``.
        opset: the ONNX opset.

    Returns:
        The exporter's graph; initializers have shapes but no values.
    """
    # Distinct sizes, none of them 0 or 1, so that no dim is specialised or taken for another.
    sizes = {BATCH: 2, SEQUENCE: 3, PAST: 5, TOTAL: 8}
    with FakeTensorMode(allow_non_fake_inputs=True), building_in(getattr(torch, dtype)):
        model = _Flat(Decoder(untied(config)).eval(), last_logits_only=logits == "last")
        ids, mask, positions, *cache = (
            torch.zeros(spec.shape(**sizes), dtype=getattr(torch, spec.dtype)) for spec in signature.inputs
        )
        dynamic = [
            {axis: torch.export.Dim.DYNAMIC for axis, dim in enumerate(spec.dims) if isinstance(dim, str)}
            for spec in signature.inputs
        ]
        pairs = list(zip(cache[::2], cache[1::2], strict=True))
        dynamic_pairs = list(zip(dynamic[3::2], dynamic[4::2], strict=True))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own use of its pytrees
            exported = torch.export.export(
                model, (ids, mask, positions, pairs), dynamic_shapes=(*dynamic[:3], dynamic_pairs), strict=False
            )
            # Unoptimized: the exporter folds each weight's Transpose into a copy, and here are no values to copy.
            program = torch.onnx.export(exported, dynamo=True, opset_version=opset, optimize=False, verbose=False)
    if program is None:
        raise InputError("torch.onnx.export returned no program")
    return program.model


def attach_weights(model: ir.Model, stored: tuple[StoredTensor, ...], folder: Path) -> None:
    """Point every weight of the graph at its place in ``model.onnx.data``."""
    for entry in stored:
        value = model.graph.initializers[entry.name]
        value.const_value = ir.ExternalTensor(
            WEIGHTS, entry.offset, entry.length, ir.DataType[ONNX_DTYPES[entry.dtype]],
            shape=ir.Shape(entry.shape), name=entry.name, base_dir=folder,
        )  # fmt: skip
        value.shape = ir.Shape(entry.shape)


# The exporter warns that torchvision is absent, which no GLM needs.
logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
