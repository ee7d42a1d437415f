"""How fast requests end, and so when one that is turned away should come again."""

from __future__ import annotations

import math
from collections import deque

RATE_OVER = 32
"""Requests that ended last, whose pace says how long a queue takes."""
LONGEST_WAIT_S = 300


class Pace:
    """The last requests' ends, in seconds of one clock."""

    def __init__(self) -> None:
        self._ended_at: deque[float] = deque(maxlen=RATE_OVER)

    def ended(self, now: float) -> None:
        """One more."""
        self._ended_at.append(now)

    def retry_after_s(self) -> int:
        """Seconds in which a place in the queue will be free, at the pace of the last requests; 1 without any."""
        if len(self._ended_at) < 2:
            return 1
        pace = (self._ended_at[-1] - self._ended_at[0]) / (len(self._ended_at) - 1)
        return max(1, min(LONGEST_WAIT_S, math.ceil(pace)))
