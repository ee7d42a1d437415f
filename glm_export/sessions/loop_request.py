"""What a loop on the device is asked for: how tokens are chosen, and when rows end. It needs no library."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NOT_A_NUMBER, INFINITE = -1, -2
"""In the place of an id: the row's logits are no distribution."""
LOST = {NOT_A_NUMBER: "NaN", INFINITE: "infinite"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopRequest:
    """Tokens to be chosen where the logits are, for the rows of a batch.

    ``draws_BN``: float64 in ``[0, 1)``, one a token; None is greedy. ``temperature``, ``top_k``, ``top_p``: as in
    ``generation.sampling``, where there are draws. ``remaining_B``: tokens each row may still take. ``finished_B``:
    rows that have ended. ``stop_ids`` end a row. ``pad_token_id``: what a row that has ended is fed.
    ``last_position``: where its place stays.
    """

    remaining_B: NDArray[np.int64]
    finished_B: NDArray[np.bool_]
    stop_ids: frozenset[int]
    pad_token_id: int
    last_position: int
    draws_BN: NDArray[np.float64] | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    @property
    def steps(self) -> int:
        """Tokens the longest row may still take."""
        return int(self.remaining_B[~self.finished_B].max(initial=0))
