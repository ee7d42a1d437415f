"""What a tensor's values are like while a model runs: ranges, a histogram, and where five methods would clip them.

Shapes: T tokens, K channels (the last axis), U bins up to the last one in use, I candidate thresholds, L levels.
Values may be of any float dtype and on any device; state is kept on the CPU, and is small. What float32 cannot hold
counts as infinite. A threshold is in the values' units, and clips them to -threshold … threshold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from glm_export.errors import InputError

OBSERVERS = ("min_max", "moving_average", "percentile", "entropy", "mse")
"""The methods that :meth:`TensorStatistics.thresholds` answers for."""

_MOST_BINS = 1 << 16
_LEAST_EXPONENT = -1000  # so that bins / top is a float64 whatever the values
_LARGEST = torch.finfo(torch.float32).max
_CANDIDATES = 4096  # thresholds weighed at once, in a few tables of this many rows and a column a level
_TIE = 1e-12  # what rounding leaves of a difference between two candidates that are equally good


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
        values = _wide(values)
        low, high = _extent(values)
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

    def _grow_to(self, largest: float) -> None:
        mantissa, exponent = math.frexp(largest)
        exponent = max(exponent - (mantissa == 0.5), _LEAST_EXPONENT)
        if self._exponent is not None:
            # After so many foldings everything is in the first bin.
            for _ in range(min(exponent - self._exponent, self.bins.bit_length())):
                pairs = self._counts[:-1].view(-1, 2).sum(dim=1)
                self._counts = torch.cat((pairs, self._counts[-1:], torch.zeros_like(pairs)))
        self._exponent = exponent


def percentile_threshold(histogram: Histogram, fraction: float = 0.9999) -> float:
    """The smallest bin edge within which at least a fraction of the values lies, zeros among them.

    NVIDIA's ``pytorch_quantization`` (``calib/histogram.py``) and ONNX Runtime take the next smaller edge, within which
    there is less than the fraction.

    Args:
        histogram: of the values.
        fraction: above 0, up to 1.

    Raises:
        InputError: the fraction is out of range, or nothing but zeros was observed.
    """
    if not 0 < fraction <= 1:
        raise InputError(f"a fraction of the values is above 0 and up to 1; found {fraction}")
    within_U = _counts_in_use(histogram).cumsum(0)
    return (int((within_U < fraction * within_U[-1]).sum()) + 1) * histogram.width


def entropy_threshold(histogram: Histogram, levels: int = 128) -> float:
    """The bin edge at which values rounded to levels lose least information, by TensorRT's published method.

    For each edge ``i`` the reference P is the first ``i`` bins, what lies beyond added to the last of them; the
    candidate Q is the same bins without that addition, merged into ``levels`` and spread again evenly over those bins
    of a level that P does not leave empty. The least KL(P, Q) wins. Source: S. Migacz, "8-bit Inference with
    TensorRT", GTC 2017, backup slides. The rest is ``pytorch_quantization``'s: bin ``j`` belongs to level
    ``floor(j * levels / i)``, equal candidates leave the largest threshold, and the threshold is the edge itself (the
    slides add half a bin), up to the one that clips nothing. But it replaces the first bin's count by the second's,
    and nothing is replaced here: of a tensor that is mostly zeros, the method clips most of the rest. All bins in use
    are searched, unreduced: running sums make a candidate cost one step a level, not one a bin.

    Args:
        histogram: of the values.
        levels: magnitudes an integer can express: 128 of 8 bits. No threshold is below this many bins.

    Raises:
        InputError: fewer than one level, or nothing but zeros was observed.
    """
    return _best_edge(histogram, levels, entropy=True)


def mse_threshold(histogram: Histogram, levels: int = 127) -> float:
    """The bin edge that leaves the least mean squared error of rounding to nearest, clipped values included.

    A threshold means steps of ``threshold / levels``, ``levels`` of them to each side of zero. Each value is taken to
    be at its bin's centre, as by ``pytorch_quantization`` (NVIDIA, ``calib/histogram.py``, ``_compute_amax_mse``).
    Equal candidates leave the largest threshold.

    Args:
        histogram: of the values.
        levels: 127 of 8 bits. No threshold is below this many bins: a step would be finer than a bin.

    Raises:
        InputError: fewer than one level, or nothing but zeros was observed.
    """
    return _best_edge(histogram, levels, entropy=False)


class MinMax:
    """``low`` and ``high``, the smallest and the largest value, exact; infinity and -infinity before any."""

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf

    def observe(self, values: Tensor) -> None:
        """Take in values of any shape; InputError if NaN or infinity is among them."""
        values = _wide(values)
        if values.numel():
            low, high = _extent(values)
            self.low, self.high = min(self.low, low), max(self.high, high)

    def threshold(self) -> float:
        """The larger magnitude of ``low`` and ``high``, as the symmetric observers of ``torch.ao.quantization``.

        Raises:
            InputError: nothing was observed.
        """
        if self.low > self.high:
            raise InputError("no activations were observed")
        return max(-self.low, self.high)


class MovingAverage(MinMax):
    """``low`` and ``high`` are averages of each batch's smallest and largest value, the latest weighing most.

    The first batch sets them; each later one adds ``constant * (batch's - average)``, in float32, bit for bit as
    ``torch.ao.quantization.MovingAverageMinMaxObserver``. So order and division into batches matter.

    Args:
        constant: above 0, up to 1; else InputError.
    """

    def __init__(self, constant: float = 0.01) -> None:
        if not 0 < constant <= 1:
            raise InputError(f"an averaging constant is above 0 and up to 1; found {constant}")
        super().__init__()
        self._constant = constant

    def observe(self, values: Tensor) -> None:
        """Take in one batch of any shape; InputError if NaN or infinity is in it."""
        values = _wide(values)
        if values.numel():
            extent = torch.tensor(_extent(values), dtype=torch.float32)
            if self.low <= self.high:
                old = torch.tensor((self.low, self.high), dtype=torch.float32)
                extent = old + self._constant * (extent - old)
            self.low, self.high = extent.tolist()


class ChannelMaxima:
    """How large each of K channels' values are: the greatest magnitude and the mean magnitude.

    Attributes:
        maxima_K: float64 ``[K]``, exact; zeros before any value.
        sums_K: float64 ``[K]``, sums of magnitudes; another order of the values can change their last bits.
        count: tokens so far.
    """

    def __init__(self, channels: int) -> None:
        self.maxima_K = torch.zeros(channels, dtype=torch.float64)
        self.sums_K = torch.zeros(channels, dtype=torch.float64)
        self.count = 0

    def means(self) -> Tensor:
        """Mean magnitudes, float64 ``[K]``; zeros before any value."""
        return self.sums_K / max(self.count, 1)

    def observe(self, values: Tensor) -> None:
        """Take in values ``[..., K]``.

        Raises:
            InputError: another number of channels, or NaN or infinity among them; then nothing is taken in.
        """
        if values.shape[-1:] != self.maxima_K.shape:
            raise InputError(f"expected activations of {len(self.maxima_K)} channels; found {list(values.shape)}")
        values = _wide(values)
        _extent(values)
        for magnitudes_TK in _magnitudes(values):
            self.maxima_K = torch.maximum(self.maxima_K, magnitudes_TK.amax(dim=0).double().cpu())
            self.sums_K += magnitudes_TK.sum(dim=0, dtype=torch.float64).cpu()
            self.count += len(magnitudes_TK)


class TokenMaxima:
    """Each token's greatest magnitude, summarised: what scales that are set for each token anew would be.

    Attributes:
        histogram: of the tokens' maxima.
        least: the smallest of them; infinity before any.
    """

    def __init__(self) -> None:
        self.histogram = Histogram()
        self.least = math.inf

    @property
    def largest(self) -> float:
        """The largest of the tokens' maxima; 0 before any."""
        return self.histogram.largest

    def observe(self, values: Tensor) -> None:
        """Take in values ``[..., K]``; InputError if NaN or infinity is among them."""
        maxima = [magnitudes_TK.amax(dim=1) for magnitudes_TK in _magnitudes(_wide(values))]
        if maxima:
            maxima_T = torch.cat(maxima)
            self.histogram.observe(maxima_T)
            self.least = min(self.least, float(maxima_T.min()))


class TensorStatistics:
    """All of the above about one tensor of K channels.

    Attributes:
        min_max, moving_average, histogram, channels, tokens: the parts, which have seen the same batches.
    """

    def __init__(self, channels: int) -> None:
        self.min_max = MinMax()
        self.moving_average = MovingAverage()
        self.histogram = Histogram()
        self.channels = ChannelMaxima(channels)
        self.tokens = TokenMaxima()

    @property
    def low(self) -> float:
        """The smallest value; infinity before any."""
        return self.min_max.low

    @property
    def high(self) -> float:
        """The largest value; -infinity before any."""
        return self.min_max.high

    def observe(self, values: Tensor) -> None:
        """Take in one batch ``[..., K]``.

        Raises:
            InputError: another number of channels, or NaN or infinity in it; then nothing is taken in.
        """
        values = _wide(values)
        self.channels.observe(values)  # first: it refuses whatever any of them would
        for observer in (self.min_max, self.moving_average, self.histogram, self.tokens):
            observer.observe(values)

    def thresholds(self) -> dict[str, float]:
        """Where each of :data:`OBSERVERS` clips, in the values' units.

        Raises:
            InputError: nothing was observed, or nothing but zeros.
        """
        percentile = percentile_threshold(self.histogram)  # first: it refuses zeros
        return {
            "min_max": self.min_max.threshold(),
            "moving_average": self.moving_average.threshold(),
            "percentile": percentile,
            "entropy": entropy_threshold(self.histogram),
            "mse": mse_threshold(self.histogram),
        }


def _wide(values: Tensor) -> Tensor:
    """Float64 as it is; every other dtype becomes float32, which is exact for the narrower floats."""
    values = values.detach()
    return values if values.dtype == torch.float64 else values.float()


def _extent(values: Tensor) -> tuple[float, float]:
    """Smallest and largest value; two zeros where there is none."""
    low, high = (float(end) for end in torch.aminmax(values)) if values.numel() else (0.0, 0.0)
    if not (low >= -_LARGEST and high <= _LARGEST):  # NaN compares false
        raise InputError("NaN or infinity among activations")
    return low, high


def _chunk_size(values: Tensor) -> int:
    """Values worked on at once: few enough for a CPU's cache, many enough to fill an accelerator."""
    return 1 << 18 if values.device.type == "cpu" else 1 << 24


def _magnitudes(values: Tensor) -> Iterator[Tensor]:
    """``[T, K]``, a chunk at a time; none where there are no values."""
    if values.numel():
        rows_TK = values.reshape(-1, values.shape[-1])
        for chunk_TK in torch.split(rows_TK, max(_chunk_size(values) // rows_TK.shape[1], 1)):
            yield chunk_TK.abs()


def _counts_in_use(histogram: Histogram) -> Tensor:
    """Counts up to the last bin that is not empty, float64 ``[U]``."""
    if histogram.top == 0:
        raise InputError("no activations were observed, or nothing but zeros: no threshold follows from them")
    counts = histogram.counts
    return counts[: int(counts.nonzero()[-1]) + 1].double()


def _best_edge(histogram: Histogram, levels: int, *, entropy: bool) -> float:
    """The last of the candidates whose loss is least: every edge from ``levels`` bins on, in the values' units."""
    if levels < 1:
        raise InputError(f"rounding needs a level at least; found {levels}")
    counts_U = _counts_in_use(histogram)
    if len(counts_U) <= levels:
        return len(counts_U) * histogram.width
    losses = _divergences if entropy else _squared_errors
    candidates = torch.arange(levels, len(counts_U) + 1)
    loss_I = torch.cat([losses(counts_U, some_I, levels) for some_I in torch.split(candidates, _CANDIDATES)])
    return int(candidates[(loss_I <= loss_I.min() + _TIE).nonzero()[-1]]) * histogram.width


def _before(values_U: Tensor) -> Tensor:
    """Sums of the first 0, 1, … U values."""
    return torch.cat((values_U.new_zeros(1), values_U.cumsum(0)))


def _divergences(counts_U: Tensor, edges_I: Tensor, levels: int) -> Tensor:
    """KL(P, Q) of :func:`entropy_threshold` in nats, float64 ``[I]``; infinity where Q lacks what P has."""
    masses, logs = _before(counts_U), _before(torch.xlogy(counts_U, counts_U))
    # Level k starts at the first bin j with j * levels / i >= k.
    starts_IL = -(-edges_I[:, None] * torch.arange(levels + 1) // levels)
    mass_IL = masses[starts_IL].diff(dim=1)
    bins_IL = _before((counts_U > 0).double())[starts_IL].diff(dim=1)
    bins_IL[:, -1] += counts_U[edges_I - 1] == 0  # what lies beyond fills that bin of P
    inside_I, total = masses[edges_I], masses[-1]
    reference_IL = mass_IL.clone()
    reference_IL[:, -1] += total - inside_I
    last_I = total - masses[edges_I - 1]
    own_I = logs[edges_I - 1] + torch.xlogy(last_I, last_I)
    shared_I = torch.xlogy(reference_IL, mass_IL / bins_IL.clamp(min=1)).sum(dim=1)
    divergence_I = (own_I - shared_I) / total - total.log() + inside_I.log()
    return divergence_I.masked_fill(inside_I == 0, math.inf)


def _squared_errors(counts_U: Tensor, edges_I: Tensor, levels: int) -> Tensor:
    """Mean squared errors of :func:`mse_threshold` as shares of the mean square, float64 ``[I]``.

    The sum over levels k of ``(x - k * step)**2``, by parts: what crossing each boundary ``(k + 1/2) * step`` changes.
    """
    centres_U = torch.arange(len(counts_U), dtype=torch.float64) + 0.5  # in bins, like steps and edges
    values, moments = _before(counts_U), _before(counts_U * centres_U)
    steps_I = edges_I.double() / levels
    odd_L = 2 * torch.arange(levels) + 1
    # The first bin j with j + 1/2 >= (k + 1/2) * i / levels; on a boundary both levels are equally far.
    starts_IL = -((levels - edges_I[:, None] * odd_L) // (2 * levels))
    starts_IL = starts_IL.clamp(0, len(counts_U))
    crossed_IL, moments_IL = values[-1] - values[starts_IL], moments[-1] - moments[starts_IL]
    square = (counts_U * centres_U.square()).sum()
    change_I = steps_I.square() * (crossed_IL * odd_L).sum(dim=1) - 2 * steps_I * moments_IL.sum(dim=1)
    return 1 + change_I / square
