"""Files of weights, opened without running anything in them."""

from __future__ import annotations

import logging
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from glm_export.errors import CheckpointError, EnvironmentMissingError, shown
from glm_export.machine.memory import available_memory

logger = logging.getLogger(__name__)

WRAPPERS = ("module", "state_dict", "model", "model_state_dict")
"""Keys under which trainers put the weights beside what else they save (DeepSpeed, Lightning, plain loops)."""
ZIP_MAGIC = b"PK\x03\x04"


def open_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name, from safetensors or from what ``torch.save`` wrote.

    Raises:
        CheckpointError: the file is damaged, or holds more than tensors.
        EnvironmentMissingError: it cannot be mapped, and does not fit into memory.
    """
    return open_safetensors(path) if path.suffix == ".safetensors" else open_torch(path)


def open_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name, memory-mapped.

    Raises:
        CheckpointError: the file is damaged or cut short.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is damaged or cut short: {error}; download it again"
        ) from error
    return {name: _ordinary(tensor, name, path) for name, tensor in tensors.items()}


def open_torch(path: Path) -> dict[str, Tensor]:
    """Tensors by name, memory-mapped where the file can be; ``weights_only``, so that nothing in it is run.

    One wrapper around the names (``{"state_dict": {…}}``) is taken off.

    Raises:
        CheckpointError: the file is damaged, in another format, or holds more than tensors.
        EnvironmentMissingError: it cannot be mapped, and does not fit into memory.
    """
    mapped = is_mappable(path)
    if mapped:
        _require_stored_as_is(path)
    else:
        _require_memory_for(path)
    try:
        with warnings.catch_warnings():
            # Which pickle protocol a file has is nothing its reader can change.
            warnings.filterwarnings("ignore", message="Detected pickle protocol", category=UserWarning)
            saved = torch.load(path, map_location="cpu", mmap=mapped, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors, and code from a checkpoint is never run; ask for safetensors weights"
        ) from error
    except Exception as error:  # a damaged pickle ends in any of them
        told = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is damaged, cut short or not written by torch.save: {told}"
        ) from error
    return {name: _ordinary(tensor, name, path) for name, tensor in _unwrapped(saved, path).items()}


def _require_stored_as_is(path: Path) -> None:
    """See that what is mapped lies in the file as it is: a packed entry can hold a thousand times the file."""
    try:
        with zipfile.ZipFile(path) as whole:
            entries = whole.infolist()
    except (OSError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is damaged or cut short: {error}; download it again"
        ) from error
    packed = next((entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED), None)
    if packed is not None:
        raise CheckpointError(
            f"{path} has the packed entry {shown(packed.filename)}, and torch.save packs none; load it where it is "
            "trusted, and save it again"
        )
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise CheckpointError(f"{path} states more bytes in its entries than it has; download it again")


def _ordinary(tensor: Tensor, name: str, path: Path) -> Tensor:
    """A tensor whose numbers lie in its file, each in a place of its own; without what training hangs on it.

    Raises:
        CheckpointError: it is of another kind.
    """
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        kind = type(tensor).__name__
    elif tensor.is_quantized or tensor.layout is not torch.strided or tensor.is_complex() or tensor.is_nested:
        kind = f"{str(tensor.layout).removeprefix('torch.')} {str(tensor.dtype).removeprefix('torch.')}"
    elif tensor.device.type != "cpu":
        kind = f"on device {tensor.device.type}"
    elif tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
        kind = f"of {tensor.numel()} values in {tensor.untyped_storage().nbytes()} bytes"
    else:
        return tensor.detach().resolve_neg()
    raise CheckpointError(
        f"{shown(name)} in {path} should be a dense tensor of real numbers, found one {kind}; save the model's "
        "state_dict() again"
    )


def is_mappable(path: Path) -> bool:
    """Whether a file's tensors can be memory-mapped: all but what torch wrote before 1.6."""
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        return file.read(len(ZIP_MAGIC)) == ZIP_MAGIC


def _require_memory_for(path: Path) -> None:
    size, available = path.stat().st_size, available_memory()
    told = (
        f"{path.name} is in the format torch wrote before 1.6, which cannot be memory-mapped: reading it takes "
        f"{size / 1e9:.1f} GB of memory"
    )
    if available is not None and size > available:
        raise EnvironmentMissingError(
            f"{told}, and {available / 1e9:.1f} GB are available; load it where there is more and save it again "
            "(torch.save, or save_pretrained)"
        )
    logger.warning("%s; saved again with torch.save or save_pretrained it takes none", told)


def _unwrapped(saved: Any, path: Path) -> dict[str, Tensor]:
    if _is_state_dict(saved):
        return dict(saved)
    if isinstance(saved, Mapping):
        wrapped = [key for key in WRAPPERS if _is_state_dict(saved.get(key))]
        if len(wrapped) == 1:
            return dict(saved[wrapped[0]])
        if wrapped:
            raise CheckpointError(
                f"{path} holds weights under {' and '.join(map(repr, wrapped))}, and nothing says which are meant; "
                "save the one state dict alone"
            )
    kind = type(saved).__name__
    if isinstance(saved, Mapping):
        kind += f" of {', '.join(f'{shown(key)}: {type(value).__name__}' for key, value in list(saved.items())[:4])}"
    raise CheckpointError(
        f"{path} should map names to tensors, itself or under one of {', '.join(WRAPPERS)}; found {kind}: "
        "save the model's state_dict()"
    )


def _is_state_dict(saved: Any) -> bool:
    return (
        isinstance(saved, Mapping)
        and bool(saved)
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in saved.items())
    )
