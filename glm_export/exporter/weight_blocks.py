"""One parameter's bytes in file order: as it is, in pieces of a few megabytes, or in the format its recipe gives it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from glm_export.calibration.formats import encode
from glm_export.calibration.formats.pieces import blocks
from glm_export.calibration.quantization import RoundedWeights
from glm_export.errors import CheckpointError
from glm_export.exporter.weight_layout import StoredTensor
from glm_export.spec.weight_formats import SCALES, ExpertWeights, WeightFormats


def stored_blocks(
    entries: list[StoredTensor],
    parts: Callable[[torch.dtype | None], Iterable[Tensor]],
    origin: str,
    rounded: RoundedWeights | None = None,
) -> Iterator[tuple[StoredTensor, Tensor]]:
    """The bytes of one parameter in file order: as it is, or in the format its recipe gives it.

    Args:
        entries: the tensors that stand for the parameter.
        parts: reads it, worked out in a dtype where it is worked out at all.
        origin: what to call it in a message.
        rounded: where weights lie that were rounded beforehand.

    Raises:
        CheckpointError: a value is NaN or infinite, or exceeds what its dtype in the file can hold.
    """
    form = entries[0].form
    if form is None:
        dtype = getattr(torch, entries[0].dtype)
        for part in parts(dtype):
            tensor = alternating(part) if entries[0].alternating else part
            for block in blocks(tensor, dtype, transposed=entries[0].transposed):
                _check_finite(block, origin, tensor.dtype)
                yield entries[0], block
        return
    if isinstance(form, ExpertWeights):
        yield from _expert_blocks(entries, form, parts, origin)
        return
    formats = WeightFormats(form)
    given = rounded.given(entries[0].source, formats, entries[0].columns) if rounded is not None else None
    weight_NK = given.integers if given is not None else next(iter(parts(None)))
    for index, block in encode(form, weight_NK, given):
        if entries[index].name.endswith(SCALES):
            block = _scales(block, entries[index], origin, weight_NK.dtype)
        yield entries[index], block


def _expert_blocks(
    entries: list[StoredTensor],
    form: ExpertWeights,
    parts: Callable[[torch.dtype | None], Iterable[Tensor]],
    origin: str,
) -> Iterator[tuple[StoredTensor, Tensor]]:
    """Integers expert by expert; of all experts scales alone, which follow in the file, are held meanwhile."""
    packed, scales = entries
    # One piece of memory: pieces kept among others that come and go would leave holes, more with every layer.
    held_ENC = torch.empty(scales.shape, dtype=getattr(torch, scales.dtype))
    for expert, part_NK in enumerate(parts(None)):
        expert_NK = alternating(part_NK) if packed.alternating else part_NK
        for index, block in encode(form, expert_NK):
            if index == 0:
                yield packed, block
            else:
                held_ENC[expert] = _scales(block, scales, origin, part_NK.dtype)
    yield scales, held_ENC


def alternating(part_NK: Tensor) -> Tensor:
    """The first row of each half, then the second of each: a copy."""
    halves_2nK = part_NK.reshape(2, -1, part_NK.shape[-1])
    return halves_2nK.transpose(0, 1).flatten(0, 1)


def _scales(block: Tensor, entry: StoredTensor, origin: str, source_dtype: torch.dtype) -> Tensor:
    scales = block.to(getattr(torch, entry.dtype))
    _check_finite(scales, origin, source_dtype)
    return scales


def _check_finite(block: Tensor, origin: str, source_dtype: torch.dtype) -> None:
    # aminmax carries NaN through and runs at memory speed, unlike isfinite.
    low, high = torch.aminmax(block)
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        if block.dtype != source_dtype:
            raise CheckpointError(
                f"{origin} holds NaN, infinity or values beyond {str(block.dtype).removeprefix('torch.')}; "
                "check the file, or export with --dtype float32 or bfloat16"
            )
        raise CheckpointError(f"{origin} holds NaN or infinity; the checkpoint is damaged or its training diverged")
