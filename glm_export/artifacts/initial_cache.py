"""Keys and values every row of a batch begins with: a P-Tuning prefix, as a file beside a program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

from glm_export.errors import CheckpointError
from glm_export.inputs.call_layout import CallLayout
from glm_export.spec.config import GlmConfig
from glm_export.spec.signature import CACHE_LENGTH_AXIS, Signature, past_names

if TYPE_CHECKING:  # a program runs without torch
    from torch import Tensor

INITIAL_CACHE = "initial_cache.safetensors"
DTYPES: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "I8": np.int8}


@dataclass(frozen=True, slots=True, kw_only=True)
class InitialCache:
    """What stands in a cache before the first token.

    ``arrays``: ``[1, K, P, D]`` by the names programs give their pasts, ``past_key_values.{i}.key`` and ``.value``;
    floats, or int8 where the program keeps integers. Keys are turned and dealt as the program's own.
    """

    arrays: dict[str, NDArray[Any]]

    @classmethod
    def of(cls, pairs: Sequence[tuple[Tensor, Tensor]]) -> InitialCache:
        """Keys and values ``[1, K, P, D]`` by layer, as a checkpoint gives them."""
        named = (zip(past_names(layer), pair, strict=True) for layer, pair in enumerate(pairs))
        return cls(arrays={name: tensor.numpy() for both in named for name, tensor in both})

    @property
    def length(self) -> int:
        """P: columns it takes of every row."""
        return int(next(iter(self.arrays.values())).shape[CACHE_LENGTH_AXIS])


def write_initial_cache(
    initial: InitialCache, folder: Path, signature: Signature, kv_scales: NDArray[np.float32] | None
) -> None:
    """Write an initial cache beside a program, in the dtype the program keeps.

    Args:
        initial: in floats.
        folder: of the program.
        signature: of the program.
        kv_scales: ``[L, 2]`` where it keeps integers.

    Raises:
        CheckpointError: keys or values are too large for the dtype.
    """
    import torch
    from safetensors.torch import save_file

    dtype = signature.input(past_names(0)[0]).dtype
    arrays = CallLayout(signature=signature, kv_scales=kv_scales).quantize_past(initial.arrays)
    tensors = {name: torch.from_numpy(array).to(getattr(torch, dtype)) for name, array in arrays.items()}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{name} of the prefix should fit {dtype}, found {np.abs(initial.arrays[name]).max():.3g}; export with "
                "--dtype bfloat16 or float32"
            )
    save_file(tensors, folder / INITIAL_CACHE)


def read_initial_cache(folder: Path, config: GlmConfig, signature: Signature) -> InitialCache | None:
    """The initial cache beside a program; None where the model has no prefix. bfloat16 is read as float32.

    Args:
        folder: of the program.
        config: says whether there is one, and its length.
        signature: of the program.

    Raises:
        CheckpointError: the file is missing, damaged, or another program's.
    """
    if not config.prefix_length:
        return None
    path = folder / INITIAL_CACHE
    if not path.is_file():
        raise CheckpointError(f"{path} is missing, and the program starts from it; export again")
    try:
        stored = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
        arrays = {name: _array(entry) for name, entry in stored}
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; export again") from error
    expected = (1, config.kv_heads, config.prefix_length, config.head_dim)
    names = [name for layer in range(config.num_layers) for name in past_names(layer)]
    integers = signature.cache_is_integer
    for name in names:
        found = arrays.get(name)
        if found is None or found.shape != expected or (found.dtype == np.int8) != integers:
            what = "nothing" if found is None else f"{found.dtype} {list(found.shape)}"
            raise CheckpointError(
                f"{path} should hold {name} as {'int8' if integers else 'floats'} {list(expected)}, found {what}; "
                "export again"
            )
    return InitialCache(arrays={name: arrays[name] for name in names})


def _array(entry: dict[str, Any]) -> NDArray[Any]:
    # numpy has no bfloat16: its bits are the upper half of a float32's.
    if entry["dtype"] == "BF16":
        bits = np.frombuffer(entry["data"], np.uint16).astype(np.uint32) << 16
        return bits.view(np.float32).reshape(entry["shape"])
    array: NDArray[Any] = np.frombuffer(entry["data"], DTYPES[entry["dtype"]]).reshape(entry["shape"]).copy()
    return array
