"""The reference decoder as ONNX's exporter sees it, traced without weights, and the weights attached afterwards."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from glm_export.artifacts.program import WEIGHTS
from glm_export.errors import InputError
from glm_export.exporter.weight_layout import StoredTensor
from glm_export.graphs.stamp import TAUGHT_BY, UnevenLayersError, stamp_layers
from glm_export.modeling import Decoder, building_in
from glm_export.spec.config import GlmConfig
from glm_export.spec.dtypes import ONNX_DTYPES
from glm_export.spec.signature import BATCH, PAST, SEQUENCE, TOTAL, Signature

logger = logging.getLogger(__name__)

LAYERS = "decoder.layers"
"""The layers as the traced module names them."""
BEFORE_CACHE = 3
"""Inputs before keys and values: ids, mask, positions."""


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
    """Trace the reference decoder without weights: each kind of layer a few times, the others stamped after them.

    Args:
        config: the sizes; the head is traced untied.
        signature: its symbolic dims become dynamic.
        dtype: of weights, cache and logits.
        logits: ``all`` or ``last``.
        opset: the ONNX opset.

    Returns:
        The exporter's graph; initializers have shapes but no values. In canonical form it is that of
        :func:`trace_layers` over all layers.
    """
    with building_in(getattr(torch, dtype)), torch.device("meta"):
        layers = Decoder(untied(config)).layers
    taught = layers_to_trace(list(layers))
    if taught < len(layers):
        model = trace_layers(config, signature, taught, dtype=dtype, logits=logits, opset=opset)
        try:
            stamp_layers(model, len(layers), module=LAYERS)
        except UnevenLayersError as error:
            logger.warning("tracing all %d layers, which takes longer: %s", len(layers), error)
        else:
            return model
    return trace_layers(config, signature, len(layers), dtype=dtype, logits=logits, opset=opset)


def layers_to_trace(layers: Sequence[nn.Module]) -> int:
    """How many layers, from the first on, show all there is: the others are as the last of them."""
    kinds = [_kind(layer) for layer in layers]
    alike = sum(1 for _ in takewhile(lambda kind: kind == kinds[-1], reversed(kinds)))
    return min(len(layers), len(layers) - alike + TAUGHT_BY)


def _kind(layer: nn.Module) -> list[object]:
    """All that tells a layer's computation from another's: its modules, their settings, and shapes of parameters."""
    return [
        (
            name,
            type(module),
            {key: value for key, value in vars(module).items() if not key.startswith("_")},
            [(key, tensor.shape, tensor.dtype) for key, tensor in module.named_parameters(recurse=False)],
        )
        for name, module in layer.named_modules()
    ]


def trace_layers(
    config: GlmConfig, signature: Signature, layers: int, *, dtype: str, logits: str, opset: int
) -> ir.Model:
    """Trace the reference decoder's first layers as if it had no more; as :func:`trace` otherwise."""
    # Distinct sizes, none of them 0 or 1, so that no dim is specialised or taken for another.
    sizes = {BATCH: 2, SEQUENCE: 3, PAST: 5, TOTAL: 8}
    inputs = signature.inputs[: BEFORE_CACHE + 2 * layers]
    with FakeTensorMode(allow_non_fake_inputs=True), building_in(getattr(torch, dtype)):
        model = _Flat(Decoder(untied(config)).eval(), last_logits_only=logits == "last")
        model.decoder.layers = model.decoder.layers[:layers]
        ids, mask, positions, *cache = (
            torch.zeros(spec.shape(**sizes), dtype=getattr(torch, spec.dtype)) for spec in inputs
        )
        dynamic = [
            {axis: torch.export.Dim.DYNAMIC for axis, dim in enumerate(spec.dims) if isinstance(dim, str)}
            for spec in inputs
        ]
        pairs = list(zip(cache[::2], cache[1::2], strict=True))
        dynamic_pairs = list(zip(dynamic[BEFORE_CACHE::2], dynamic[BEFORE_CACHE + 1 :: 2], strict=True))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own use of its pytrees
            exported = torch.export.export(
                model,
                (ids, mask, positions, pairs),
                dynamic_shapes=(*dynamic[:BEFORE_CACHE], dynamic_pairs),
                strict=False,
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
