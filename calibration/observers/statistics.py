"""What a tensor's values are like while a model runs: ranges, a histogram, and where five methods would clip them.

Shapes: T tokens, K channels (the last axis), U bins up to the last one in use, I candidate thresholds, L levels.
Values may be of any float dtype and on any device; state is kept on the CPU, and is small. What float32 cannot hold
counts as infinite. A threshold is in the values' units, and clips them to -threshold … threshold.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from glm_export.calibration.observers.histogram import Histogram, magnitude_chunks, smallest_and_largest, widened
from glm_export.calibration.observers.thresholds import entropy_threshold, mse_threshold, percentile_threshold
from glm_export.errors import InputError

OBSERVERS = ("min_max", "moving_average", "percentile", "entropy", "mse")
"""The methods that :meth:`TensorStatistics.thresholds` answers for."""


class MinMax:
    """``low`` and ``high``, the smallest and the largest value, exact; infinity and -infinity before any."""

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf

    def observe(self, values: Tensor) -> None:
        """Take in values of any shape; InputError if NaN or infinity is among them."""
        values = widened(values)
        if values.numel():
            low, high = smallest_and_largest(values)
            self.low, self.high = min(self.low, low), max(self.high, high)

    def merge(self, other: MinMax) -> None:
        """Take in what another has seen, after all that this one has."""
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

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

    Attributes:
        extents: each batch's smallest and largest value: what another needs to average them in their order.
    """

    def __init__(self, constant: float = 0.01) -> None:
        if not 0 < constant <= 1:
            raise InputError(f"an averaging constant is above 0 and up to 1; found {constant}")
        super().__init__()
        self._constant = constant
        self.extents: list[tuple[float, float]] = []

    def observe(self, values: Tensor) -> None:
        """Take in one batch of any shape; InputError if NaN or infinity is in it."""
        values = widened(values)
        if values.numel():
            self._take(smallest_and_largest(values))

    def merge(self, other: MinMax) -> None:
        """Take in another's batches, after all that this one has seen: the same bits as if they had come here."""
        assert isinstance(other, MovingAverage)
        for extent in other.extents:
            self._take(extent)

    def _take(self, smallest_and_largest: tuple[float, float]) -> None:
        self.extents.append(smallest_and_largest)
        extent = torch.tensor(smallest_and_largest, dtype=torch.float32)
        if self.low <= self.high:
            old = torch.tensor((self.low, self.high), dtype=torch.float32)
            extent = old + self._constant * (extent - old)
        self.low, self.high = extent.tolist()


class ChannelMaxima:
    """How large each of K channels' values are: the greatest magnitude and the mean magnitude.

    Args:
        channels: K.
        batches: whether each batch's sums are kept, for another to add them in their order.

    Attributes:
        maxima_K: float64 ``[K]``, exact; zeros before any value.
        sums_K: float64 ``[K]``, sums of the batches' sums of magnitudes; another order can change their last bits.
        count: tokens so far.
    """

    def __init__(self, channels: int, *, batches: bool = False) -> None:
        self._batches: list[Tensor] | None = [] if batches else None
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
        values = widened(values)
        smallest_and_largest(values)
        batch_K = torch.zeros_like(self.sums_K)
        for magnitudes_TK in magnitude_chunks(values):
            self.maxima_K = torch.maximum(self.maxima_K, magnitudes_TK.amax(dim=0).double().cpu())
            batch_K += magnitudes_TK.sum(dim=0, dtype=torch.float64).cpu()
            self.count += len(magnitudes_TK)
        self.sums_K += batch_K
        if self._batches is not None:
            self._batches.append(batch_K)

    def merge(self, other: ChannelMaxima) -> None:
        """Take in another's batches, after all that this one has seen: the same bits as if they had come here.

        Raises:
            InputError: the other did not keep them.
        """
        if other._batches is None:
            raise InputError("sums are added batch by batch, and these were not kept")
        self.maxima_K = torch.maximum(self.maxima_K, other.maxima_K)
        for batch_K in other._batches:
            self.sums_K += batch_K
        self.count += other.count


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
        maxima = [magnitudes_TK.amax(dim=1) for magnitudes_TK in magnitude_chunks(widened(values))]
        if maxima:
            maxima_T = torch.cat(maxima)
            self.histogram.observe(maxima_T)
            self.least = min(self.least, float(maxima_T.min()))

    def merge(self, other: TokenMaxima) -> None:
        """Take in what another has seen."""
        self.histogram.merge(other.histogram)
        self.least = min(self.least, other.least)


class TensorStatistics:
    """All of the above about one tensor of K channels.

    Args:
        channels: K.
        batches: whether what depends on the batches' order is kept of each, so that another can take it in.

    Attributes:
        min_max, moving_average, histogram, channels, tokens: the parts, which have seen the same batches.
    """

    def __init__(self, channels: int, *, batches: bool = False) -> None:
        self.min_max = MinMax()
        self.moving_average = MovingAverage()
        self.histogram = Histogram()
        self.channels = ChannelMaxima(channels, batches=batches)
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
        values = widened(values)
        self.channels.observe(values)  # first: it refuses whatever any of them would
        for observer in (self.min_max, self.moving_average, self.histogram, self.tokens):
            observer.observe(values)

    def merge(self, other: TensorStatistics) -> None:
        """Take in another's batches, after all that this one has seen: the same bits as if they had come here.

        Raises:
            InputError: the other did not keep what depends on their order.
        """
        self.channels.merge(other.channels)
        self.min_max.merge(other.min_max)
        self.moving_average.merge(other.moving_average)
        self.histogram.merge(other.histogram)
        self.tokens.merge(other.tokens)

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
