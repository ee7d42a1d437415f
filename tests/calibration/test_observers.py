"""Observers: exact in any order and division, and where the published methods and other implementations clip."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from hypothesis import given, settings, strategies as st
from onnx import TensorProto, helper
from onnxruntime.quantization.calibrate import HistogramCollector, MinMaxCalibrater
from torch import Tensor
from torch.ao.quantization import HistogramObserver, MinMaxObserver, MovingAverageMinMaxObserver

from glm_export.calibration.observers.histogram import Histogram
from glm_export.calibration.observers.statistics import (
    OBSERVERS,
    ChannelMaxima,
    MinMax,
    MovingAverage,
    TensorStatistics,
    TokenMaxima,
)
from glm_export.calibration.observers.thresholds import entropy_threshold, mse_threshold, percentile_threshold
from glm_export.errors import InputError

Counts = npt.NDArray[np.int64]
METHODS: list[Callable[[Histogram], float]] = [percentile_threshold, entropy_threshold, mse_threshold]
# Powers of two lie on bin edges and make a top of their own, so they tell rules for edges apart.
POWERS = st.sampled_from([sign * 2.0**exponent for exponent in range(-4, 5) for sign in (1, -1)])
ANY = st.one_of(POWERS, POWERS.map(lambda power: power**31), st.floats(width=32, allow_nan=False, allow_infinity=False))
VALUES = st.one_of(st.lists(st.one_of(st.floats(-16, 16), POWERS), max_size=60), st.lists(ANY, max_size=60))
BINS = st.sampled_from([2, 16, 4096])


def histogram_of(*batches: Tensor, bins: int = 4096) -> Histogram:
    histogram = Histogram(bins)
    for batch in batches:
        histogram.observe(batch)
    return histogram


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def heavy_tailed(count: int, seed: int = 0) -> Tensor:
    """Most values are small and a few are dozens of times larger, as among activations."""
    return normal(count, seed=seed) * normal(count, seed=seed + 1).exp()


# -- the histogram -------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(values=VALUES, bins=BINS)
def test_counts_are_those_of_the_definition(values: list[float], bins: int) -> None:
    """Float64 holds every quotient of a float32 and a power of two, so plain division is exact here."""
    magnitudes = np.abs(np.array(values, np.float32).astype(np.float64))
    histogram = histogram_of(torch.tensor(values, dtype=torch.float32), bins=bins)
    assert histogram.largest == magnitudes.max(initial=0)
    assert histogram.width == histogram.top / bins
    assert histogram.top == 0 or math.frexp(histogram.top)[0] == 0.5
    assert histogram.top / 2 < histogram.largest <= histogram.top or not any(magnitudes)
    indices = np.minimum(np.floor(magnitudes / (histogram.width or 1)), bins - 1).astype(np.int64)
    assert histogram.counts.dtype == torch.int64
    assert np.array_equal(histogram.counts.numpy(), np.bincount(indices, minlength=bins))


@settings(max_examples=300)
@given(values=VALUES, bins=BINS, cuts=st.lists(st.integers(0, 8), min_size=1), data=st.data())
def test_order_and_division_change_nothing(
    values: list[float], bins: int, cuts: list[int], data: st.DataObject
) -> None:
    tensor = torch.tensor(values, dtype=torch.float32)
    shuffled = tensor[data.draw(st.permutations(range(len(values))))] if values else tensor
    at_once, streamed = histogram_of(tensor, bins=bins), Histogram(bins)
    for part in torch.tensor_split(shuffled, sorted(cuts)):
        streamed.observe(part)
    assert torch.equal(at_once.counts, streamed.counts)
    assert (at_once.top, at_once.largest) == (streamed.top, streamed.largest)


def test_values_at_the_top_move_on_when_it_doubles() -> None:
    """Control: counts folded in pairs alone would leave the old top one bin too low."""
    histogram = histogram_of(torch.tensor([1.0]), bins=4)
    assert histogram.counts.tolist() == [0, 0, 0, 1]
    for value, counts in ((2.0, [0, 0, 1, 1]), (1000.0, [2, 0, 0, 1])):
        histogram.observe(torch.tensor([value]))
        assert histogram.counts.tolist() == counts


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_shapes_and_strides_change_nothing(dtype: torch.dtype) -> None:
    values = normal(3, 700, 200).bfloat16().clamp(-60, 60).float().half().float()  # what each dtype can hold
    values[values.abs() < 2**-7] = 0
    expected = histogram_of(values).counts
    assert torch.equal(histogram_of(values.to(dtype)).counts, expected)
    assert torch.equal(histogram_of(values.to(dtype).transpose(0, 2).requires_grad_()).counts, expected)
    assert int(expected.sum()) == values.numel()  # more than one chunk
    # Float32 cannot hold bins / top of these, and float64 hardly.
    assert torch.equal(histogram_of(values.double() * 2.0**-140).counts, expected)
    assert torch.equal(histogram_of((values * 2.0**-120).to(torch.float32)).counts, expected)
    assert histogram_of(torch.tensor(5e-324, dtype=torch.float64)).top == 2.0**-1000


# -- thresholds ----------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(values=VALUES.filter(any), bins=st.sampled_from([16, 256, 4096]))
def test_thresholds_stay_within_the_bin_of_the_largest(values: list[float], bins: int) -> None:
    histogram = histogram_of(torch.tensor(values, dtype=torch.float64), bins=bins)
    end = min((math.floor(histogram.largest / histogram.width) + 1) * histogram.width, histogram.top)
    for found in (method(histogram) for method in METHODS):
        assert 0 < found <= end
        assert (found / histogram.width).is_integer()
    assert percentile_threshold(histogram, 1.0) == end


@settings(max_examples=20)
@given(exponent=st.integers(-30, 30), seed=st.integers(0, 99))
def test_powers_of_two_scale_thresholds_exactly(exponent: int, seed: int) -> None:
    plain, scaled = TensorStatistics(16), TensorStatistics(16)
    for batch in heavy_tailed(6400, seed).view(4, 100, 16):
        plain.observe(batch)
        scaled.observe(batch * 2.0**exponent)
    assert scaled.thresholds() == {name: value * 2.0**exponent for name, value in plain.thresholds().items()}


@pytest.mark.parametrize("fraction", [0.5, 0.9, 0.999, 0.9999, 1.0])
def test_percentile_by_counting(fraction: float) -> None:
    values = heavy_tailed(50_000)
    histogram = histogram_of(values)
    magnitudes = np.sort(values.abs().numpy())
    edges = np.arange(1, 4097) * histogram.width
    enough = [edge for edge in edges if np.searchsorted(magnitudes, edge) >= fraction * len(magnitudes)]
    assert percentile_threshold(histogram, fraction) == enough[0]
    assert percentile_threshold(histogram, fraction * 0.99) < enough[0]


def spread_over_levels(bins: Counts, reference: Counts, levels: int) -> npt.NDArray[np.float64]:
    """The slides' Q: bins merged into levels, each level spread over those of its bins that P does not leave empty."""
    level_of = np.arange(len(bins)) * levels // len(bins)
    spread = np.zeros(len(bins))
    for level in range(levels):
        filled = (level_of == level) & (reference != 0)
        if filled.any():
            spread[filled] = bins[level_of == level].sum() / filled.sum()
    return spread


def last_least(losses: dict[int, float], slack: float) -> int:
    return max(i for i, loss in losses.items() if loss <= min(losses.values()) + slack)


def published_entropy(counts: Counts, levels: int) -> int:
    """The bins kept by the slides' loop over i, written as they write it."""
    divergences = {}
    for i in range(levels, int(np.flatnonzero(counts)[-1]) + 2):
        reference = counts[:i].copy()
        reference[i - 1] += counts[i:].sum()
        candidate = spread_over_levels(counts[:i], reference, levels)
        p, q = reference / reference.sum(), candidate / max(candidate.sum(), 1)
        if (q[p > 0] > 0).all():
            divergences[i] = float((p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum())
    return last_least(divergences, slack=1e-12)


def rounding_errors(points: npt.NDArray[np.float64], threshold: float, levels: int) -> npt.NDArray[np.float64]:
    step = threshold / levels
    return (np.clip(np.round(points / step), -levels, levels) * step - points) ** 2


def brute_force_mse(counts: Counts, levels: int) -> int:
    centres = np.arange(len(counts)) + 0.5
    edges = range(levels, int(np.flatnonzero(counts)[-1]) + 2)
    errors = {i: float((rounding_errors(centres, i, levels) * counts).sum()) for i in edges}
    return last_least(errors, slack=1e-12 * float((counts * centres**2).sum()))


SAMPLES = {
    "normal": normal(20_000),
    "heavy-tailed": heavy_tailed(20_000),
    "uniform": torch.rand(20_000, generator=torch.Generator().manual_seed(0)) * 5,
    "few values": torch.tensor([0.3, 0.3, 0.31, 0.9, -1.7, 0.0, 2.9]),
    "two values": torch.tensor([1.5, 1.5, 3.25]),
    "one far away": torch.cat((normal(5000), torch.tensor([100.0]))),
}


@pytest.mark.parametrize("levels", [1, 7, 64, 127, 128])
@pytest.mark.parametrize("sample", SAMPLES)
def test_entropy_and_mse_by_brute_force(sample: str, levels: int) -> None:
    histogram = histogram_of(SAMPLES[sample], bins=512)
    counts = histogram.counts.numpy()
    assert entropy_threshold(histogram, levels) == published_entropy(counts, levels) * histogram.width
    assert mse_threshold(histogram, levels) == brute_force_mse(counts, levels) * histogram.width
    if sample == "heavy-tailed":  # the control: another number of levels
        assert entropy_threshold(histogram, levels + 32) != entropy_threshold(histogram, levels)
        assert mse_threshold(histogram, levels + 32) != mse_threshold(histogram, levels)


def test_the_slides_own_example() -> None:
    bins = np.array([1, 0, 2, 3, 5, 3, 1, 7])
    assert spread_over_levels(bins, bins, 2).tolist() == [2, 0, 2, 2, 4, 4, 4, 4]


def test_equally_good_thresholds_leave_the_one_that_clips_nothing() -> None:
    histogram = histogram_of(SAMPLES["two values"])
    assert entropy_threshold(histogram) > 3.25
    wide = histogram_of(torch.tensor([0.0, 1.0, 1.0]), bins=64)  # fewer bins than levels
    assert [method(wide) for method in METHODS] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("sample", ["normal", "heavy-tailed", "uniform", "one far away"])
def test_mse_is_the_least_that_the_values_themselves_allow(sample: str) -> None:
    """Against a fine search over the values, for which bin centres stood; and against ``torch.ao``.

    Its HistogramObserver searches from both ends and stops at the first range that is worse than the last.
    """
    values = SAMPLES[sample]

    def error(threshold: float) -> float:
        return float(rounding_errors(values.double().numpy(), threshold, 127).mean())

    histogram = histogram_of(values)
    ours = error(mse_threshold(histogram))
    assert ours <= 1.01 * min(error(share * histogram.largest) for share in np.linspace(1 / 32, 1, 500))
    theirs = HistogramObserver(dtype=torch.qint8, qscheme=torch.per_tensor_symmetric)
    theirs(values)
    scale, _ = theirs.calculate_qparams()
    assert ours <= 1.001 * error(127.5 * float(scale))
    assert 1.01 * ours < error(mse_threshold(histogram, 31))  # the control


# -- other implementations -----------------------------------------------------------------------------


def onnxruntime_range(values: Tensor, method: str, bins: int, *, levels: int = 0, percentile: float = 0) -> float:
    collector = HistogramCollector(method, True, bins, levels, percentile, "same")
    with contextlib.redirect_stdout(io.StringIO()):
        collector.collect({"x": values.numpy()})
        return float(collector.compute_collection_result()["x"][1])


@pytest.mark.parametrize("fraction", [0.5, 0.99, 0.9999])
def test_percentile_is_that_of_onnxruntime_but_for_the_edge(fraction: float) -> None:
    """It takes the lower edge of the last bin, and its bins start at the smallest magnitude: up to two bins less."""
    values = heavy_tailed(100_003)  # no fraction of them is whole: its running sum of shares would round across
    values *= 8 / values.abs().max()  # so that tops agree
    histogram = histogram_of(values)
    theirs = onnxruntime_range(values, "percentile", 4096, percentile=100 * fraction)
    assert 0 <= percentile_threshold(histogram, fraction) - theirs <= 2 * histogram.width
    assert percentile_threshold(histogram, fraction + (1 - fraction) / 2) - theirs > 2 * histogram.width


def test_entropy_is_near_that_of_onnxruntime() -> None:
    """It has bins and levels on both sides of zero, gives the last level what division leaves over, and rounds Q."""
    share = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    quantiles = (1 - share).log() / (1 - share[-1]).log() * 8  # of a Laplace distribution's magnitudes
    values = (quantiles * (-1.0) ** torch.arange(200_000)).float()
    histogram = histogram_of(values, bins=512)
    theirs = onnxruntime_range(values, "entropy", 2 * 512, levels=2 * 128)
    assert abs(entropy_threshold(histogram) - theirs) <= 24 * histogram.width
    assert abs(entropy_threshold(histogram, 32) - theirs) > 48 * histogram.width


def onnxruntime_extremes(calls: list[list[Tensor]], averaged: bool, folder: Path) -> tuple[float, float]:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "one node", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "m.onnx")
    calibrater = MinMaxCalibrater(folder / "m.onnx", None, str(folder / "augmented.onnx"), moving_average=averaged)
    calibrater.augment_graph()
    calibrater.create_inference_session()
    for batches in calls:
        feeds = iter([{"x": batch.numpy()} for batch in batches])
        calibrater.collect_data(SimpleNamespace(get_next=partial(next, feeds, None)))
    low, high = calibrater.compute_data()["x"].range_value
    return float(low[0]), float(high[0])


def test_ranges_are_those_of_onnxruntime(tmp_path: Path) -> None:
    """Its moving average moves from call to call; the batches of one call it averages plainly."""
    batches = [heavy_tailed(1000, seed) for seed in range(5)]
    min_max, moving = MinMax(), MovingAverage()
    for batch in batches:
        min_max.observe(batch)
        moving.observe(batch)
    one_call, five_calls = [batches], [[batch] for batch in batches]
    assert onnxruntime_extremes(one_call, False, tmp_path) == (min_max.low, min_max.high)
    assert onnxruntime_extremes(five_calls, True, tmp_path) == pytest.approx((moving.low, moving.high), rel=1e-6)
    mean = float(torch.stack([batch.max() for batch in batches]).mean())
    assert onnxruntime_extremes(one_call, True, tmp_path)[1] == pytest.approx(mean, rel=1e-6)
    assert mean != pytest.approx(moving.high, rel=0.05)  # the control


@settings(max_examples=50)
@given(sizes=st.lists(st.integers(0, 50), min_size=1, max_size=8).filter(any), seed=st.integers(0, 99))
def test_ranges_are_those_of_torch_to_the_bit(sizes: list[int], seed: int) -> None:
    theirs = [MinMaxObserver(), MovingAverageMinMaxObserver(), MovingAverageMinMaxObserver(averaging_constant=0.3)]
    ours = [MinMax(), MovingAverage(), MovingAverage(0.3)]
    batches = [heavy_tailed(size, seed + index) for index, size in enumerate(sizes)]
    for observer in (*ours, *theirs):
        for batch in batches:
            (observer.observe if isinstance(observer, MinMax) else observer)(batch)
    assert [(one.low, one.high) for one in ours] == [(float(one.min_val), float(one.max_val)) for one in theirs]
    if sum(map(bool, sizes)) > 1:
        assert ours[1].low != ours[2].low


# -- channels, tokens, and all of it -------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 3), (5, 7, 3), (300_000, 3), (4, 400_000)])
def test_channels_and_tokens(shape: tuple[int, ...]) -> None:
    values = heavy_tailed(math.prod(shape)).view(shape)
    rows = values.abs().double().view(-1, shape[-1])
    for parts in (1, 2):
        channels, tokens = ChannelMaxima(shape[-1]), TokenMaxima()
        for part in values.tensor_split(parts):
            channels.observe(part)
            tokens.observe(part)
        assert torch.equal(channels.maxima_K, rows.amax(dim=0))
        assert torch.allclose(channels.means(), rows.mean(dim=0), rtol=1e-12)
        assert channels.count == len(rows)
        assert torch.equal(tokens.histogram.counts, histogram_of(rows.amax(dim=1)).counts)
        assert (tokens.least, tokens.largest) == (float(rows.amax(dim=1).min()), float(rows.max()))


def test_statistics_are_those_of_their_parts() -> None:
    statistics, moving = TensorStatistics(8), MovingAverage()
    batches = heavy_tailed(8000).view(5, 200, 8)
    for batch in batches:
        statistics.observe(batch)
        moving.observe(batch)
    found, histogram = statistics.thresholds(), histogram_of(batches)
    assert tuple(found) == OBSERVERS
    largest = float(batches.abs().max())
    assert list(found.values()) == [largest, moving.threshold(), *(method(histogram) for method in METHODS)]
    assert len(set(found.values())) == len(OBSERVERS)
    assert (statistics.low, statistics.high) == (float(batches.min()), float(batches.max()))
    assert statistics.channels.count == int(statistics.tokens.histogram.counts.sum()) == 1000


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e300])
def test_what_is_not_finite_is_refused_and_leaves_no_trace(bad: float) -> None:
    statistics = TensorStatistics(4)
    statistics.observe(normal(6, 4))
    before = statistics.thresholds(), statistics.channels.count, statistics.tokens.least
    values = normal(6, 4).double() * 100
    values[3, 2] = bad
    for observer in (statistics, statistics.channels, statistics.tokens, statistics.histogram, statistics.min_max):
        with pytest.raises(InputError, match="NaN or infinity among activations"):
            observer.observe(values)
    assert (statistics.thresholds(), statistics.channels.count, statistics.tokens.least) == before


def test_nothing_and_zeros_have_no_thresholds() -> None:
    statistics = TensorStatistics(4)
    for batch in (torch.zeros(0, 4), torch.zeros(3, 0, 4), torch.zeros(5, 4), torch.zeros(1, 4)):
        with pytest.raises(InputError, match="nothing but zeros"):
            statistics.thresholds()
        statistics.observe(batch)
    statistics.observe(torch.tensor([[0, 0, -2.0, 0]]))
    assert statistics.thresholds()["min_max"] == 2
    assert int(statistics.histogram.counts[0]) == 27
    with pytest.raises(InputError, match="no activations"):
        MinMax().threshold()


def test_unfit_arguments_are_refused() -> None:
    for bins in (0, 1, 48, 1 << 17):
        with pytest.raises(InputError, match="power of two"):
            Histogram(bins)
    for share in (0.0, 1.5, math.nan):
        with pytest.raises(InputError, match="fraction"):
            percentile_threshold(histogram_of(torch.ones(1)), share)
        with pytest.raises(InputError, match="constant"):
            MovingAverage(share)
    for method in (entropy_threshold, mse_threshold):
        with pytest.raises(InputError, match="level"):
            method(histogram_of(torch.ones(1)), 0)
    for values in (torch.ones(4, 3), torch.tensor(1.0)):
        with pytest.raises(InputError, match="4 channels"):
            TensorStatistics(4).observe(values)
