"""Magnitudes counted as they stream by."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from glm_export.errors import InputError

_MOST_BINS = 1 << 16
_LEAST_EXPONENT = -1000  # so that bins / top is a float64 whatever the values
_LARGEST = torch.finfo(torch.float32).max


class Histogram:
    """Counts of magnitudes in equal bins over 0 … :attr:`top`, the least power of two that holds all of them.

    Bin ``j`` counts ``j * width <= |x| < (j + 1) * width``; the last one holds its upper end too. A power of two makes
    ``floor(|x| * bins / top)`` exact, and a top that doubles adds neighbouring bins. So the counts are the same to the
    last one in whatever order and however divided the values come.

    Attributes:
        bins: a power of two, 2 … 65536; else InputError. Of 4096 at least 2049 are spanned: TensorRT searches 2048.
        largest: the largest magnitude so far, exact; 0 before any.
    """

    def __init__(self, bins: int = 4096) -> None:
        if not 2 <= bins <= _MOST_BINS or bins & (bins - 1):
            raise InputError(f"a histogram needs a power of two of bins, 2 to {_MOST_BINS}; found {bins}")
        self.bins = bins
        self.largest = 0.0
        self._exponent: int | None = None
        # One more than bins: values equal to top stay apart, since they start a bin as soon as top doubles.
        self._counts = torch.zeros(bins + 1, dtype=torch.int64)

    @property
    def counts(self) -> Tensor:
        """Values a bin, int64 ``[bins]``, a copy on the CPU. Zeros are in the first one."""
        counts = self._counts[:-1].clone()
        counts[-1] += self._counts[-1]
        return counts

    @property
    def top(self) -> float:
        """Upper end of the last bin, in the values' units; 0 while only zeros were seen."""
        return 0.0 if self._exponent is None else 2.0**self._exponent

    @property
    def width(self) -> float:
        """``top / bins``."""
        return self.top / self.bins

    def observe(self, values: Tensor) -> None:
        """Count values of any shape; InputError if NaN or infinity is among them, and then none is counted."""
        values = widened(values)
        low, high = smallest_and_largest(values)
        if max(-low, high) > self.largest:
            self.largest = max(-low, high)
            self._grow_to(self.largest)
        if self._exponent is None:
            self._counts[0] += values.numel()
            return
        shift = self.bins.bit_length() - 1 - self._exponent
        for chunk in torch.split(values.reshape(-1), _chunk_size(values)):
            # Float32 cannot hold the factor that tiny values need.
            magnitudes = chunk.double().abs() if shift > 127 else chunk.abs()
            indices = magnitudes.mul_(2.0**shift).to(torch.int32)
            self._counts += torch.bincount(indices, minlength=self.bins + 1).cpu()

    def merge(self, other: Histogram) -> None:
        """Count another's values as well; InputError if its bins are not as many. The other one is left as it is."""
        if other.bins != self.bins:
            raise InputError(f"histograms of {self.bins} and of {other.bins} bins cannot be one")
        counts = other._counts
        if other._exponent is not None:
            self.largest = max(self.largest, other.largest)
            if self._exponent is None or self._exponent < other._exponent:
                self._fold_to(other._exponent)
            counts = _folded(counts, self._exponent - other._exponent if self._exponent is not None else 0)
        self._counts = self._counts + counts

    def _grow_to(self, largest: float) -> None:
        mantissa, exponent = math.frexp(largest)
        self._fold_to(max(exponent - (mantissa == 0.5), _LEAST_EXPONENT))

    def _fold_to(self, exponent: int) -> None:
        if self._exponent is not None:
            self._counts = _folded(self._counts, exponent - self._exponent)
        self._exponent = exponent


def _folded(counts: Tensor, times: int) -> Tensor:
    """Counts of bins twice as wide, so many times over; the last one, of what equals the top, starts a bin then."""
    bins = len(counts) - 1
    # After so many foldings everything is in the first bin.
    for _ in range(min(times, bins.bit_length())):
        pairs = counts[:-1].view(-1, 2).sum(dim=1)
        counts = torch.cat((pairs, counts[-1:], torch.zeros(bins // 2, dtype=torch.int64)))
    return counts


def widened(values: Tensor) -> Tensor:
    """Float64 as it is; every other dtype becomes float32, which is exact for the narrower floats."""
    values = values.detach()
    return values if values.dtype == torch.float64 else values.float()


def smallest_and_largest(values: Tensor) -> tuple[float, float]:
    """Smallest and largest value; two zeros where there is none."""
    low, high = (float(end) for end in torch.aminmax(values)) if values.numel() else (0.0, 0.0)
    if not (low >= -_LARGEST and high <= _LARGEST):  # NaN compares false
        raise InputError("NaN or infinity among activations")
    return low, high


def _chunk_size(values: Tensor) -> int:
    """Values worked on at once: few enough for a CPU's cache, many enough to fill an accelerator."""
    return 1 << 18 if values.device.type == "cpu" else 1 << 24


def magnitude_chunks(values: Tensor) -> Iterator[Tensor]:
    """``[T, K]``, a chunk at a time; none where there are no values."""
    if values.numel():
        rows_TK = values.reshape(-1, values.shape[-1])
        for chunk_TK in torch.split(rows_TK, max(_chunk_size(values) // rows_TK.shape[1], 1)):
            yield chunk_TK.abs()
