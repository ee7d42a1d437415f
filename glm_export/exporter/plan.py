"""What an export will read, write and need, known before it starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from glm_export.artifacts.output_folder import free_disk_for
from glm_export.calibration.keep import KEPT
from glm_export.calibration.quantization import Quantization
from glm_export.checkpoints.checkpoint import Checkpoint
from glm_export.checkpoints.sources import PIECE_ELEMENTS, ComputedTensor
from glm_export.errors import EnvironmentMissingError
from glm_export.exporter.trace import untied
from glm_export.exporter.weight_layout import StoredTensor, plan_weights
from glm_export.machine.memory import total_memory
from glm_export.modeling import Decoder, building_in, linear_weights
from glm_export.spec.capabilities import Capabilities
from glm_export.spec.config import GlmConfig
from glm_export.spec.dtypes import DTYPE_BYTES
from glm_export.spec.weight_formats import SCALES, ExpertWeights
from glm_export.spec.weight_map import as_stored

# What importing torch and tracing a decoder takes, whatever its size (measured, benchmarks/export).
BASE_MEMORY_BYTES = 450 << 20
GRAPH_BYTES_PER_LAYER = 64 << 10
WORKING_PIECES = 4
"""How many pieces of a computed tensor there are at once: codes, values, scales, the result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportPlan:
    """What an export will read, write and need, known before it starts. Sizes in bytes."""

    parameters: int
    source_bytes: int
    output_bytes: int
    free_bytes: int
    memory_bytes: int
    stored: tuple[StoredTensor, ...]


def plan_export(
    checkpoint: Checkpoint,
    out: Path,
    dtype: str,
    quantization: Quantization | None = None,
    can: Capabilities | None = None,
) -> ExportPlan:
    """Work out sizes and memory.

    Args:
        checkpoint: to export.
        out: where to.
        dtype: of the program.
        quantization: says which weights are quantized.
        can: the dialect's capabilities; None: nothing beyond the standard's operators.

    Raises:
        EnvironmentMissingError: the disk cannot hold the output, or the machine what is worked out.
    """
    config = checkpoint.config
    with torch.device("meta"), building_in(getattr(torch, dtype)):
        model = Decoder(untied(config))
    formats = quantization.formats(linear_weights(model), config) if quantization else None
    stored = plan_weights(model, formats, grouped_experts=can is not None and can.grouped_experts)
    output = stored[-1].offset + stored[-1].length + config.num_layers * GRAPH_BYTES_PER_LAYER
    free = free_disk_for(out, output, "the export needs")
    tables = 2 * config.max_positions * config.rotary.dim * 4 if config.rotary else 0
    # A weight that smoothing changes is held in float32 while it is written.
    changed = quantization.smoothing.keys() | quantization.folded(config).keys() if quantization else set()
    smoothed = max((p.numel() for name, p in model.named_parameters() if name in changed), default=0)
    kept = quantization is not None and quantization.recipe.rounding == KEPT
    memory = BASE_MEMORY_BYTES + tables + DTYPE_BYTES["float32"] * smoothed
    memory += computed_bytes(checkpoint, stored, kept=kept) + held_scales(stored)
    _require_memory(memory)
    return ExportPlan(
        parameters=sum(p.numel() for p in Decoder.parameters(model))
        - (model.head.weight.numel() if config.tied_head else 0),
        source_bytes=checkpoint.source_bytes,
        output_bytes=output,
        free_bytes=free,
        memory_bytes=memory,
        stored=tuple(stored),
    )


def prompt_form_bytes(config: GlmConfig, quantization: Quantization) -> list[int]:
    """What the second form of each layer's weights takes, the one for prompts, in bytes."""
    with torch.device("meta"), building_in(torch.float32):
        model = Decoder(config)
    parameters = dict(model.named_parameters())
    layers = [0] * config.num_layers
    for name, both in quantization.formats(linear_weights(model), config).items():
        if both.prefill is not None:
            rows, columns = parameters[name].shape
            stored = both.prefill.stored_tensors(name, rows, columns, "float32")
            layers[int(name.split(".")[1])] += sum(spec.nbytes() for spec in stored)
    return layers


def held_scales(stored: Sequence[StoredTensor]) -> int:
    """Memory for the scales of a layer's experts, held while their integers are written."""
    of_experts = (entry for entry in stored if isinstance(entry.form, ExpertWeights))
    return max((entry.length for entry in of_experts if entry.name.endswith(SCALES)), default=0)


def _require_memory(needed: int) -> None:
    """What other processes hold may come free; what the machine lacks does not."""
    there = total_memory()
    if there is not None and needed > there:
        raise EnvironmentMissingError(
            f"the export needs about {needed / 1e9:.1f} GB of memory, and this machine has {there / 1e9:.1f} GB; "
            "export on a larger one"
        )


def computed_bytes(checkpoint: Checkpoint, stored: Sequence[StoredTensor], *, kept: bool) -> int:
    """Memory for what is worked out from several tensors: pieces, and the largest that its layout then copies.

    The result itself lies in a file (:meth:`~glm_export.checkpoints.checkpoint.Checkpoint.parts`, ``spooled``), but
    for integers of 8 bits that are ``kept``.
    """
    dtypes = {entry.source: entry.dtype for entry in stored if entry.form is None}
    held, pieces = [0], 0
    for rule in checkpoint.weight_map.rules:
        found = [checkpoint.sources.get(name) for name in rule.sources[: rule.each]]
        if any(isinstance(source, ComputedTensor) for source in found):
            pieces = WORKING_PIECES * PIECE_ELEMENTS * DTYPE_BYTES["float32"]
            count = sum(math.prod(source.shape) for source in found if source is not None)
            integers = kept and rule.target not in dtypes
            copies = integers + (rule.layout is not as_stored)
            each = 1 if integers else DTYPE_BYTES[dtypes.get(rule.target, "float32")]
            held.append(copies * count * each)
    return max(held) + pieces
