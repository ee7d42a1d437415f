"""What an export will read, write and need, known before it starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from glm_export.artifacts.output_folder import free_disk_for
from glm_export.calibration.quantization import Quantization
from glm_export.checkpoints.checkpoint import Checkpoint
from glm_export.exporter.trace import untied
from glm_export.exporter.weight_layout import StoredTensor, plan_weights
from glm_export.modeling import Decoder, building_in, linear_weights
from glm_export.spec.dtypes import DTYPE_BYTES

# What importing torch and tracing a decoder takes, whatever its size (measured, benchmarks/export).
BASE_MEMORY_BYTES = 450 << 20
GRAPH_BYTES_PER_LAYER = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportPlan:
    """What an export will read, write and need, known before it starts. Sizes in bytes."""

    parameters: int
    source_bytes: int
    output_bytes: int
    free_bytes: int
    memory_bytes: int
    stored: tuple[StoredTensor, ...]


def plan_export(checkpoint: Checkpoint, out: Path, dtype: str, quantization: Quantization | None = None) -> ExportPlan:
    """Work out sizes and memory; ``quantization`` says which weights are quantized.

    Raises:
        EnvironmentMissingError: the disk cannot hold the output.
    """
    config = checkpoint.config
    with torch.device("meta"), building_in(getattr(torch, dtype)):
        model = Decoder(untied(config))
    stored = plan_weights(model, quantization.formats(linear_weights(model), config) if quantization else None)
    output = stored[-1].offset + stored[-1].length + config.num_layers * GRAPH_BYTES_PER_LAYER
    free = free_disk_for(out, output, "the export needs")
    tables = 2 * config.max_positions * config.rotary.dim * 4 if config.rotary else 0
    # A weight that smoothing changes is held in float32 while it is written.
    changed = quantization.smoothing.keys() | quantization.folded(config).keys() if quantization else set()
    smoothed = max((p.numel() for name, p in model.named_parameters() if name in changed), default=0)
    return ExportPlan(
        parameters=sum(p.numel() for p in Decoder.parameters(model))
        - (model.head.weight.numel() if config.tied_head else 0),
        source_bytes=checkpoint.source_bytes,
        output_bytes=output,
        free_bytes=free,
        memory_bytes=BASE_MEMORY_BYTES + tables + DTYPE_BYTES["float32"] * smoothed,
        stored=tuple(stored),
    )
