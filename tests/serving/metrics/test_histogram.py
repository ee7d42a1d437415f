"""Buckets as Prometheus' own client fills them."""

from __future__ import annotations

from hypothesis import given, strategies as st
from prometheus_client import CollectorRegistry, Histogram as Theirs

from glm_export.serving.metrics.histogram import BETWEEN_TOKENS_S, FIRST_TOKEN_S, REQUEST_S, Histogram


@given(st.sampled_from([BETWEEN_TOKENS_S, FIRST_TOKEN_S, REQUEST_S]), st.lists(st.floats(0, 1e5), max_size=20))
def test_buckets_are_those_of_prometheus_client(bounds: tuple[float, ...], seconds: list[float]) -> None:
    # Bounds themselves are where a mistake would show.
    seconds = [*seconds, *bounds[::3]]
    ours, theirs = Histogram(bounds), Theirs("x", "x", buckets=bounds, registry=CollectorRegistry())
    for one in seconds:
        ours.observe(one)
        theirs.observe(one)
    samples = {(sample.name, sample.labels.get("le")): sample.value for sample in next(iter(theirs.collect())).samples}
    assert dict(ours.buckets()) == {le: value for (name, le), value in samples.items() if name == "x_bucket"}
    assert ours.total == samples["x_sum", None]
    assert ours.count == samples["x_count", None]


def test_a_clock_that_goes_back_says_nothing() -> None:
    histogram = Histogram((1.0,))
    histogram.observe(-5.0)
    assert (histogram.buckets(), histogram.total) == ([("1.0", 1), ("+Inf", 1)], 0.0)
