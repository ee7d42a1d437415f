"""How many engines a model wants: as many as its requests fill, and as many as its unread prompts keep busy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

UNREAD = "unread_tokens"
"""What an engine reports: tokens of prompts, of rows and of requests that wait, before their first tokens are there."""


def wanted(requests: float, unread: float, *, target_requests: float, target_tokens: float) -> int:
    """Engines for a load; at least one.

    Args:
        requests: under way and waiting.
        unread: tokens of prompts that are still to be read.
        target_requests: that one engine should have.
        target_tokens: unread ones that it should have.
    """
    return max(1, math.ceil(requests / target_requests), math.ceil(unread / target_tokens))


class LoadPolicy:
    """Ray Serve's autoscaling policy over both. Delays and bounds are applied by Ray Serve."""

    def __init__(self, target_requests: float, target_tokens: float) -> None:
        self._target_requests, self._target_tokens = target_requests, target_tokens

    def __call__(self, ctx: Any) -> tuple[int, dict[str, Any]]:
        """Engines for what was measured, and what is to be remembered: nothing."""
        reported: Mapping[str, Mapping[Any, float]] = ctx.aggregated_metrics or {}
        count = wanted(
            ctx.total_num_requests,
            sum(reported.get(UNREAD, {}).values()),
            target_requests=self._target_requests,
            target_tokens=self._target_tokens,
        )
        return count, {}
