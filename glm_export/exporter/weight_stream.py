"""``model.onnx.data``: weights streamed from the checkpoint, transposed, converted and quantized on the way.

The layout is fixed before anything is traced or read, so that writing and tracing run side by side.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterable
from functools import partial
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from glm_export.calibration.smoothed_weights import SmoothedWeights
from glm_export.errors import EnvironmentMissingError
from glm_export.exporter.direct_file import DirectFile
from glm_export.exporter.weight_blocks import stored_blocks
from glm_export.exporter.weight_layout import StoredTensor
from glm_export.graphs.patterns.rotary import rotary_tables
from glm_export.progress import Advance
from glm_export.spec.config import GlmConfig


class CancelledError(Exception):
    """The export failed or was interrupted elsewhere; writing stops."""


def write_weights(
    path: Path,
    stored: list[StoredTensor],
    weights: SmoothedWeights,
    *,
    cancelled: threading.Event,
    advance: Advance,
) -> tuple[float, str]:
    """Write the file; memory stays at a few blocks, whatever the model's size.

    Returns:
        Seconds spent waiting for the disk to write (the rest went into reading, transposing and converting), and the
        sha256 of the file.

    Raises:
        CheckpointError: a weight is NaN or infinite, or exceeds what its dtype in the file can hold.
        EnvironmentMissingError: the disk is full.
        CancelledError: ``cancelled`` was set.
    """
    source_of = weights.sources() | _tables(weights.checkpoint.config)
    try:
        with DirectFile(path, stored[-1].offset + stored[-1].length) as file:
            for (source, _), group in groupby(stored, key=lambda entry: (entry.source, entry.form)):
                parts, origin = source_of[source]
                for entry, block in stored_blocks(list(group), parts, origin, weights.rounded):
                    if cancelled.is_set():
                        raise CancelledError
                    file.pad_to(max(entry.offset, file.position))
                    # numpy has no bfloat16: bytes go out through an integer view.
                    file.write(memoryview(block.reshape(-1).view(torch.uint8).numpy().data))
                    advance(block.nbytes)
        return file.seconds, file.sha256
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise EnvironmentMissingError(
                f"the disk of {path.parent} is full; free space or choose another --out"
            ) from error
        raise


def _tables(config: GlmConfig) -> dict[str, tuple[Callable[[torch.dtype | None], Iterable[Tensor]], str]]:
    """The rotary tables, which no checkpoint holds."""
    return {name: (partial(_table, config, index), "the rotary table") for index, name in enumerate(("cos", "sin"))}


def _table(config: GlmConfig, index: int, _: torch.dtype | None) -> list[Tensor]:
    return [rotary_tables(config.rotary, config.max_positions)[index]] if config.rotary else []
