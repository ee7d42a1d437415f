"""What several processes saw, put together: the bits of one that saw all of it."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, strategies as st

from glm_export.calibration.observers.histogram import Histogram
from glm_export.calibration.observers.statistics import TensorStatistics
from glm_export.errors import InputError


def state(statistics: TensorStatistics) -> tuple[object, ...]:
    """All of it, to the last bit."""
    tokens, channels = statistics.tokens, statistics.channels
    moving = statistics.moving_average
    return (
        (statistics.low, statistics.high, moving.low, moving.high, tokens.least, tokens.largest, channels.count),
        [(one.top, one.largest, one.counts.tolist()) for one in (statistics.histogram, tokens.histogram)],
        (channels.maxima_K.tolist(), channels.sums_K.tolist()),
    )


@given(
    seed=st.integers(0, 1 << 20),
    cuts=st.sets(st.integers(0, 9), max_size=4),
    scale=st.sampled_from([0, 1e-30, 1, 1e30]),
)
def test_what_several_saw_is_what_one_would_have_seen(seed: int, cuts: set[int], scale: float) -> None:
    """To the last bit, however the batches are divided; in another order not even these bits are the same."""
    torch.manual_seed(seed)
    batches = [torch.randn(7, 8) * 10.0 ** torch.randint(-6, 6, (1,)).item() for _ in range(10)]
    batches[3] = batches[3] * scale
    one = TensorStatistics(8)
    for batch in batches:
        one.observe(batch)
    together, ends = TensorStatistics(8), [0, *sorted(cuts), 10]
    for start, end in itertools.pairwise(ends):
        part = TensorStatistics(8, batches=True)
        for batch in batches[start:end]:
            part.observe(batch)
        together.merge(part)
    assert state(together) == state(one)
    backwards = TensorStatistics(8)
    for batch in reversed(batches):
        backwards.observe(batch)
    assert state(backwards)[1] == state(one)[1]
    assert state(backwards) != state(one)


def test_what_was_not_kept_cannot_be_taken_in() -> None:
    seen = TensorStatistics(8)
    seen.observe(torch.randn(6, 8))
    with pytest.raises(InputError, match="were not kept"):
        TensorStatistics(8).merge(seen)
    with pytest.raises(InputError, match="of 4096 and of 2048"):
        Histogram().merge(Histogram(2048))
