"""Durations in buckets, as Prometheus counts them."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

FIRST_TOKEN_S = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    40.0,
    80.0,
    160.0,
    640.0,
    2560.0,
)
BETWEEN_TOKENS_S = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    40.0,
    80.0,
)
"""vLLM's, and three below them: small models write faster."""
REQUEST_S = (
    0.1,
    0.3,
    0.5,
    0.8,
    1.0,
    1.5,
    2.0,
    2.5,
    5.0,
    10.0,
    15.0,
    20.0,
    30.0,
    40.0,
    50.0,
    60.0,
    120.0,
    240.0,
    480.0,
    960.0,
    1920.0,
    7680.0,
)
"""Upper bounds of vLLM's histograms (``vllm/v1/metrics/loggers.py``), and one below those of requests."""


@dataclass(slots=True)
class Histogram:
    """Seconds seen so far: ``counts`` in each bucket, the last without an upper bound, and their ``total``.

    One thread writes, others may read.
    """

    bounds: tuple[float, ...]
    total: float = 0.0
    counts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def observe(self, seconds: float) -> None:
        """One more; a clock that went back says 0."""
        seconds = max(0.0, seconds)
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    @property
    def count(self) -> int:
        """How many were seen."""
        return sum(self.counts)

    def buckets(self) -> list[tuple[str, int]]:
        """Upper bound and how many were at most that, as the text format has them."""
        found, below = [], 0
        for bound, count in zip([*map(str, self.bounds), "+Inf"], list(self.counts), strict=True):
            below += count
            found.append((bound, below))
        return found
