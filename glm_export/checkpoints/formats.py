"""Files of weights, opened without running anything in them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from glm_export.errors import CheckpointError


def open_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name, memory-mapped.

    Raises:
        CheckpointError: the file is damaged or cut short.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is damaged or cut short: {error}; download it again"
        ) from error


def open_torch(path: Path) -> dict[str, Tensor]:
    """Tensors by name, memory-mapped; ``weights_only``, so that nothing in the file is run.

    Raises:
        CheckpointError: the file is damaged, in another format, or holds more than tensors.
    """
    try:
        tensors = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors, and code from a checkpoint is never run; ask for safetensors weights"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        first_line = str(error).splitlines()[0]
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is damaged, cut short or not in torch's zip format: {first_line}"
        ) from error
    if not isinstance(tensors, Mapping) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise CheckpointError(
            f"{path} should map names to tensors, found {type(tensors).__name__}; it is no state dict"
        )
    return dict(tensors)
