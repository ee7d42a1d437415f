"""What every weight format must know: how to encode a weight, what it keeps of it, and how to read integers back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import singledispatch

from torch import Tensor

from glm_export.calibration.quantize import dequantize_symmetric
from glm_export.spec.weight_formats import WeightFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class PrequantizedWeight:
    """A weight that was rounded beforehand: int8 ``[N, K]`` and float32 scales ``[N, C]``, symmetric, zero point 0."""

    integers: Tensor
    scales: Tensor


@singledispatch
def encode(
    form: WeightFormat,
    weight_NK: Tensor,
    given: PrequantizedWeight | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """The bytes of the format's stored tensors, in file order.

    Args:
        form: the record.
        weight_NK: ``[N, K]``, any float dtype; read in pieces.
        given: its integers, where they were found beforehand.

    Yields:
        The index of a stored tensor (:meth:`~glm_export.spec.weight_formats.WeightFormat.stored_tensors`) and a
        contiguous piece of it, valid until the next one is asked for. Scales are float32.
    """
    raise NotImplementedError(f"{type(form).__name__} has no file in calibration/formats")


@singledispatch
def _decode(form: WeightFormat, weight_NK: Tensor) -> Tensor:
    raise NotImplementedError(f"{type(form).__name__} has no file in calibration/formats")


def decode(form: WeightFormat, weight_NK: Tensor, given: PrequantizedWeight | None = None) -> Tensor:
    """The weight as its format keeps it: rounded to integers and back, float32 ``[N, K]``.

    Args:
        form: the record.
        weight_NK: ``[N, K]``, any float dtype.
        given: its integers, where they were found beforehand.
    """
    if given is not None:
        return dequantize_symmetric(given.integers, given.scales, block=form.scale_block)
    return _decode(form, weight_NK)


@singledispatch
def read_back(form: WeightFormat, packed: Tensor, scales: Tensor, columns: int) -> PrequantizedWeight:
    """A stored weight as integers.

    Args:
        form: the record; symmetric.
        packed: the first stored tensor.
        scales: the second, float32.
        columns: K.
    """
    raise NotImplementedError(f"{type(form).__name__} has no file in calibration/formats, or cannot be read back")


register_decode = _decode.register
"""For the files of this room: what :func:`decode` does for one type of record."""
